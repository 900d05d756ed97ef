"""LiteLLM's calls, with the local model provider in place of a gateway."""

import asyncio
import gc
import inspect
import io
import warnings
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

import mlflow
import pytest
import pytest_asyncio
from starlette.requests import Request
from starlette.responses import RedirectResponse

from tests.support.client import MemoryExporter
from tests.support.served import Served

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litellm
        import mlflow.litellm
        from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER
except ModuleNotFoundError as error:
    pytest.skip(f"{error.name} is not in this environment's constraints file", allow_module_level=True)

from agent_gateway_client import instrument_litellm
from agent_gateway_client._patching import PatchSet
from agent_gateway_client.demo.provider import Provider
from agent_gateway_client.http import _process_wide
from agent_gateway_client.litellm import _instrument
from agent_gateway_client.litellm._calls import LiteLLMCall
from tests.support.model_provider import EveryApi

each_way = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])

in_one_loop = [
    # As errors, warnings of LiteLLM or its dependencies would fail the call.
    pytest.mark.filterwarnings("ignore"),
    # LiteLLM keeps clients and tasks that are bound to a loop.
    pytest.mark.asyncio(loop_scope="module"),
]

MINI = "openai/gpt-4o-mini"
CLAUDE = "anthropic/claude-3-5-haiku-20241022"
MESSAGES = [{"role": "user", "content": "one two three"}]
CLAUDE_MESSAGES: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 9}
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


class Call(NamedTuple):
    """A kind of call.

    Attributes:
        function: Its name in LiteLLM; the async one has an ``a`` before its last part.
        model: The requested model.
        arguments: Its other arguments.
        usage: The input and output tokens that the provider reports; ``None`` if it reports none.
        is_sync: Whether it can also be made without asyncio.
    """

    function: str
    model: str
    arguments: dict[str, Any]
    usage: tuple[int, int] | None = None
    is_sync: bool = True


CALLS = {
    "completion": Call("completion", MINI, {"messages": MESSAGES}, (3, 5)),
    "completion, streamed": Call("completion", MINI, {"messages": MESSAGES, **STREAM}, (3, 5)),
    "text completion": Call("text_completion", "text-completion-openai/gpt-4o-mini", {"prompt": "one two"}, (2, 4)),
    "text completion, streamed": Call(
        "text_completion", "text-completion-openai/gpt-4o-mini", {"prompt": "one two", **STREAM}, (2, 4)
    ),
    "embedding": Call("embedding", "openai/text-embedding-3-small", {"input": ["one two", "three"]}, (3, 0)),
    "responses": Call("responses", MINI, {"input": "one two three"}, (3, 5)),
    "responses, streamed": Call("responses", MINI, {"input": "one two three", "stream": True}, (3, 5)),
    "responses of Claude": Call("responses", CLAUDE, {"input": "one two three"}, (3, 5)),
    "image": Call("image_generation", "openai/dall-e-3", {"prompt": "a hat"}),
    "transcription": Call("transcription", "openai/whisper-1", {"file": silence}),
    "speech": Call("speech", "openai/tts-1", {"input": "one two", "voice": "alloy"}),
    "moderation": Call("moderation", "omni-moderation-latest", {"input": "one two"}),
    "rerank": Call("rerank", "cohere/rerank-v3.5", {"query": "one", "documents": ["one two", "three"]}),
    "Claude": Call("completion", CLAUDE, CLAUDE_MESSAGES, (3, 5)),
    "Claude, streamed": Call("completion", CLAUDE, {**CLAUDE_MESSAGES, "stream": True}, (3, 5)),
    "messages": Call("anthropic.messages.create", CLAUDE, CLAUDE_MESSAGES, (3, 5), is_sync=False),
    # LiteLLM assembles the parts of this stream only if it knows the model's price.
    "messages, streamed": Call("anthropic.messages.create", CLAUDE, {**CLAUDE_MESSAGES, "stream": True}, is_sync=False),
    "messages of GPT": Call("anthropic.messages.create", MINI, CLAUDE_MESSAGES, (3, 5)),
    "gemini": Call("completion", "gemini/gemini-2.0-flash", {"messages": MESSAGES}, (3, 5)),
}
"""Each kind of call."""

PATHS = {"anthropic": "", "cohere": "/v2/rerank", "gemini": "/v1beta"}
"""LiteLLM's base URL for a provider's API, if it is not ``/v1``."""

each_call = pytest.mark.parametrize(
    ("name", "is_async"),
    [
        pytest.param(name, is_async, id=f"{name}-{'async' if is_async else 'sync'}")
        for name, call in CALLS.items()
        for is_async in (False, True)
        if is_async or call.is_sync
    ],
)


def arguments_for(provider: Provider, model: str = MINI) -> dict[str, Any]:
    """Return the arguments with which LiteLLM reaches one of the provider's models."""
    path = PATHS.get(model.partition("/")[0], "/v1")
    return {"model": model, "api_base": provider.url + path, "api_key": "none"}


async def make_call(name: str, provider: Provider, *, is_async: bool, **more: Any) -> Any:
    """Make a call and read all of its result; returns the last part of a stream."""
    call = CALLS[name]
    given = {key: value() if callable(value) else value for key, value in call.arguments.items()}
    keywords = {**arguments_for(provider, call.model), **given}
    if call.function != "moderation":
        keywords["max_retries"] = 0
    keywords |= more
    *place, function = call.function.split(".")
    result = getattr(attrgetter(".".join(place))(litellm) if place else litellm, "a" * is_async + function)(**keywords)
    if inspect.isawaitable(result):
        result = await result
    if not keywords.get("stream"):
        return result
    # LiteLLM's stream of a sync call has both methods.
    parts = [part async for part in result] if is_async else list(result)
    return parts[-1]


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[Provider]:
    with EveryApi() as provider:
        yield provider
    # LiteLLM does not close its clients, which must not affect the next test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        litellm.module_level_client.close()
        asyncio.run(litellm.module_level_aclient.close())
        # It makes new ones at their next use.
        del litellm.module_level_client, litellm.module_level_aclient
        gc.collect()


@pytest_asyncio.fixture(loop_scope="module")
async def provider(shared_provider: Provider, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Provider]:
    """A provider without requests, used as the gateway, and LiteLLM in its initial state."""
    shared_provider.clear()
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    monkeypatch.setattr(litellm, "num_retries", None)
    with instrument_litellm(shared_provider.url):
        yield shared_provider
        # What it has not logged yet would be logged in the next test.
        GLOBAL_LOGGING_WORKER.start()
        await GLOBAL_LOGGING_WORKER.flush()
    switch_autolog_off()
    undo_all()
    litellm.in_memory_llm_clients_cache.flush_cache()


def undo_instrumentations() -> None:
    """Undo every instrument_litellm(), the fixture's included. Calls that have begun are still followed."""
    for named in _instrument._patches.handles:
        if not isinstance(named, LiteLLMCall):
            last = instrument_litellm(*named.gateways)
            # As if the other handles for the same gateway had been undone before it.
            _process_wide._counts[named] = 1
            last.uninstrument()


def undo_all() -> None:
    """Undo every instrument_litellm(), and stop following calls."""
    undo_instrumentations()
    _instrument.followed_calls.clear()
    for handle in _instrument._patches.handles:
        _instrument._patches.remove(handle)


@contextmanager
def other_patches(patches: PatchSet) -> Iterator[None]:
    """Let instrument_litellm() use other patches of LiteLLM."""
    undo_all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_instrument, "_patches", patches)
        try:
            yield
        finally:
            undo_all()


def switch_autolog_on() -> None:
    """Turn autolog on if this LiteLLM has what it needs."""
    if not hasattr(mlflow.tracking, "MlflowClient"):
        pytest.skip("LiteLLM's MlflowLogger needs mlflow.tracking.MlflowClient, which mlflow-tracing leaves out")
    mlflow.litellm.autolog()


def switch_autolog_off() -> None:
    """Turn autolog off, and make LiteLLM forget the loggers that autolog leaves behind."""
    mlflow.litellm.autolog(disable=True)
    for event in ("_async_success_callback", "_async_failure_callback"):
        getattr(litellm, event).clear()


@pytest.fixture
def autolog(provider: Provider) -> None:
    switch_autolog_on()


@contextmanager
def redirected_to(provider: Provider) -> Iterator[tuple[str, list[list[str]]]]:
    """A gateway that redirects everything to the provider on another host; yields its URL and its received headers."""
    received = []

    async def redirect(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        await request.body()
        received.append(request.headers.getlist("traceparent"))
        other = provider.url.replace("127.0.0.1", "localhost")
        await RedirectResponse(other + request.url.path)(scope, receive, send)

    with Served(redirect) as gateway, instrument_litellm(gateway):
        yield gateway, received


def sent(provider: Provider) -> list[list[str]]:
    """Return the values of every traceparent line of each request."""
    return [request.header("traceparent") for request in provider.requests]


def ended(start: str = "litellm-") -> list[Any]:
    """Return the ended spans, by default LiteLLM's."""
    mlflow.flush_trace_async_logging()
    return [span for span in MemoryExporter.spans.get_finished_spans() if span.name.startswith(start)]


def usage(span: Any) -> tuple[int, int] | None:
    """Return a span's input and output tokens."""
    found = mlflow.entities.Span(span).get_attribute("mlflow.chat.tokenUsage")
    return found and (found["input_tokens"], found["output_tokens"])


def parent_id(span: Any) -> str:
    """Return the id of an OpenTelemetry span's parent in MLflow's form."""
    return f"{span.parent.span_id:016x}"
