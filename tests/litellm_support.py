"""LiteLLM's calls, against the local model provider in the place of a gateway."""

import asyncio
import gc
import inspect
import io
import warnings
import wave
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import mlflow
import pytest
import pytest_asyncio
from client_support import MemoryExporter

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litellm
        import mlflow.litellm
        from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER
except ModuleNotFoundError as error:
    pytest.skip(f"{error.name} is not in this environment's constraints file", allow_module_level=True)

from agent_gateway_client import instrument_litellm
from agent_gateway_client.demo.provider import Provider

each_way = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])

MESSAGES = [{"role": "user", "content": "one two three"}]
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def silence() -> io.BytesIO:
    """Return a sound file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0" * 800)
    file.seek(0)
    file.name = "silence.wav"
    return file


CALLS: dict[str, tuple[str, str, Callable[[], dict[str, Any]]]] = {
    "completion": ("completion", "openai/gpt-4o-mini", lambda: {"messages": MESSAGES}),
    "completion, streamed": ("completion", "openai/gpt-4o-mini", lambda: {"messages": MESSAGES, **STREAM}),
    "text completion": ("text_completion", "text-completion-openai/gpt-4o-mini", lambda: {"prompt": "one two"}),
    "embedding": ("embedding", "openai/text-embedding-3-small", lambda: {"input": ["one two", "three"]}),
    "responses": ("responses", "openai/gpt-4o-mini", lambda: {"input": "one two three"}),
    "responses, streamed": ("responses", "openai/gpt-4o-mini", lambda: {"input": "one two three", "stream": True}),
    "image": ("image_generation", "openai/dall-e-3", lambda: {"prompt": "a hat"}),
    "transcription": ("transcription", "openai/whisper-1", lambda: {"file": silence()}),
    "speech": ("speech", "openai/tts-1", lambda: {"input": "one two", "voice": "alloy"}),
    "moderation": ("moderation", "omni-moderation-latest", lambda: {"input": "one two"}),
    "anthropic": ("completion", "anthropic/claude-3-5-haiku-20241022", lambda: {"messages": MESSAGES, "max_tokens": 9}),
    "anthropic, streamed": (
        "completion",
        "anthropic/claude-3-5-haiku-20241022",
        lambda: {"messages": MESSAGES, "max_tokens": 9, "stream": True},
    ),
    "gemini": ("completion", "gemini/gemini-2.0-flash", lambda: {"messages": MESSAGES}),
}
"""Each kind of call: the function (the async one has an a before its name), the model, and what else it is given."""

USAGE = {
    "completion": (3, 5),
    "completion, streamed": (3, 5),
    "text completion": (2, 4),
    "embedding": (3, 0),
    "responses": (3, 5),
    "responses, streamed": (3, 5),
    "anthropic": (3, 5),
    "anthropic, streamed": (3, 5),
    "gemini": (3, 5),
}
"""The tokens that the provider reports for these calls, in and out; for the others none."""


async def make_call(name: str, provider: Provider, *, is_async: bool, **more: Any) -> Any:
    """Make a call and read all of what it returns; gives the last part of a stream."""
    function, model, arguments = CALLS[name]
    path = {"anthropic": "", "gemini": "/v1beta"}.get(model.partition("/")[0], "/v1")
    keywords = {"model": model, "api_base": provider.url + path, "api_key": "none", **arguments()}
    if function != "moderation":
        keywords["max_retries"] = 0
    keywords |= more
    result = getattr(litellm, "a" * is_async + function)(**keywords)
    if inspect.isawaitable(result):
        result = await result
    if not keywords.get("stream"):
        return result
    # LiteLLM's stream of a sync call has both.
    parts = [part async for part in result] if is_async else list(result)
    return parts[-1]


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider
    # LiteLLM does not close its clients, which is not to be the next test's fault.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        litellm.module_level_client.close()
        asyncio.run(litellm.module_level_aclient.close())
        gc.collect()


@pytest_asyncio.fixture(loop_scope="module")
async def provider(shared_provider: Provider, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Provider]:
    """A provider that has received nothing yet, which is the gateway; LiteLLM as it is when it is imported."""
    shared_provider.clear()
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    monkeypatch.setattr(litellm, "num_retries", None)
    with instrument_litellm(shared_provider.url):
        yield shared_provider
        # What it has not logged yet it would log in the next test.
        GLOBAL_LOGGING_WORKER.start()
        await GLOBAL_LOGGING_WORKER.flush()
    switch_autolog_off()
    litellm.in_memory_llm_clients_cache.flush_cache()


def switch_autolog_off() -> None:
    """Switch autolog off, and let LiteLLM forget the loggers that autolog leaves behind."""
    mlflow.litellm.autolog(disable=True)
    for event in ("_async_success_callback", "_async_failure_callback"):
        getattr(litellm, event).clear()


@pytest.fixture
def autolog(provider: Provider) -> None:
    mlflow.litellm.autolog()


def sent(provider: Provider) -> list[list[str]]:
    """Return the values of every traceparent line of each request."""
    return [request.header("traceparent") for request in provider.requests]


def ended(start: str = "litellm-") -> list[Any]:
    """Return the spans that ended, those of LiteLLM by default."""
    mlflow.flush_trace_async_logging()
    return [span for span in MemoryExporter.spans.get_finished_spans() if span.name.startswith(start)]
