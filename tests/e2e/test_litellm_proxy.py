"""A real LiteLLM Proxy with the one config line: what its mirrors say of each kind of call."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlflow
import mlflow.openai
import openai
import pytest
from e2e.litellm_proxy import LiteLLMProxy, configuration
from e2e_routes import reported_usage
from e2e_support import CHAT, USER, assert_mirror, children_of, mirrored, mirrors_in
from mlflow.entities import Span, Trace

from agent_gateway_client.demo.gateway import DemoGateway

Tokens = tuple[int, int] | None
"""Input and output tokens as the caller is told them; ``None`` where it is told none."""


@pytest.fixture(scope="module")
def proxy(gateway: DemoGateway, tracing: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteLLMProxy]:
    """A proxy in front of the gateway's model provider, whose mirrors go to the gateway's MLflow."""
    config = configuration(gateway.provider.url)
    with LiteLLMProxy(tmp_path_factory.mktemp("litellm"), config, MLFLOW_TRACKING_URI=gateway.tracking_uri) as proxy:
        # The first stream of a process makes LiteLLM import a lot; what comes meanwhile would be one chunk.
        with proxy.openai_client() as client:
            list(client.chat.completions.create(model="chat", messages=[USER], stream=True))
        yield proxy


def chat(proxy: LiteLLMProxy, model: str, **options: Any) -> Tokens:
    with proxy.openai_client() as client:
        usage = client.chat.completions.create(model=model, messages=[USER], **options).usage
    return usage.prompt_tokens, usage.completion_tokens


def stream(proxy: LiteLLMProxy, model: str, **options: Any) -> Tokens:
    with proxy.openai_client() as client:
        options = {"stream": True, "stream_options": {"include_usage": True}, **options}
        *_, last = client.chat.completions.create(model=model, messages=[USER], **options)
    return last.usage.prompt_tokens, last.usage.completion_tokens


def async_stream(proxy: LiteLLMProxy, model: str) -> Tokens:
    async def run() -> Any:
        async with proxy.async_openai_client() as client:
            chunks = await client.chat.completions.create(
                model=model, messages=[USER], stream=True, stream_options={"include_usage": True}
            )
            *_, last = [chunk async for chunk in chunks]
        return last.usage

    usage = asyncio.run(run())
    return usage.prompt_tokens, usage.completion_tokens


def responses(proxy: LiteLLMProxy, model: str) -> Tokens:
    with proxy.openai_client() as client:
        usage = client.responses.create(model=model, input="one two three").usage
    return usage.input_tokens, usage.output_tokens


def responses_stream(proxy: LiteLLMProxy, model: str) -> Tokens:
    with proxy.openai_client() as client:
        *_, last = client.responses.create(model=model, input="one two three", stream=True)
    return last.response.usage.input_tokens, last.response.usage.output_tokens


def embeddings(proxy: LiteLLMProxy, model: str) -> Tokens:
    with proxy.openai_client() as client:
        return client.embeddings.create(model=model, input=["one", "two three"]).usage.prompt_tokens, 0


def posted(path: str, **body: Any) -> Callable[[LiteLLMProxy, str], Tokens]:
    """Return what posts a body to a route of the proxy, for the APIs that OpenAI's SDK does not speak."""

    def post(proxy: LiteLLMProxy, model: str) -> Tokens:
        with proxy.httpx_client() as http:
            answer = http.post(path, json={"model": model, **body})
        used = reported_usage(answer.content) if answer.is_success else {}
        # Before it asks the provider, LiteLLM begins a stream of messages with a usage of zero.
        return (used["input_tokens"], used["output_tokens"]) if used.get("input_tokens") else None

    return post


MESSAGE = posted("/v1/messages", max_tokens=99, **CHAT)
MESSAGE_STREAM = posted("/v1/messages", max_tokens=99, stream=True, **CHAT)

MINI = ("openai/gpt-4o-mini", "OK")
CLAUDE = [("anthropic/claude-3-5-haiku-20241022", "OK")]
FAILED_500 = ("openai/gpt-4o-mini-fail-500", "ERROR")
FAILED_502 = ("openai/gpt-4o-fail-502", "ERROR")
FAILED_503 = ("openai/gpt-4o-fail-503", "ERROR")


class Mode(NamedTuple):
    """What an agent does, and what its mirror says.

    Attributes:
        call: Makes the call and returns the tokens that the caller was told.
        endpoint: The model group.
        request_type: LiteLLM's name for the kind of call.
        attempts: ``provider/model`` and status of each attempt.
        errors: What the failed attempts failed of.
        error: What the call failed of.
        status: The HTTP status.
        streamed: Whether the response is a stream; ``None`` where there is none.
        priced: Whether LiteLLM knows what the tokens cost.
        named: The mirror's name, where it is not the endpoint's.
    """

    call: Callable[[LiteLLMProxy, str], Tokens]
    endpoint: str
    request_type: str
    attempts: list[tuple[str, str]]
    errors: tuple[str, ...] = ()
    error: str | None = None
    status: int = 200
    streamed: bool | None = False
    priced: bool = True
    named: str | None = None


def failing(call: Callable[[LiteLLMProxy, str], Tokens], endpoint: str, kind: str, attempts: Any, error: str) -> Mode:
    """Return a call that fails with an HTTP status, as the last attempt does."""
    errors = tuple(error for _ in attempts)
    return Mode(call, endpoint, kind, attempts, errors, error, int(error), streamed=None)


TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
MODES = {
    "chat": Mode(chat, "chat", "acompletion", [MINI]),
    "tools": Mode(lambda p, m: chat(p, m, tools=TOOLS), "chat", "acompletion", [MINI]),
    "stream": Mode(stream, "chat", "acompletion", [MINI], streamed=True),
    "async stream": Mode(async_stream, "chat", "acompletion", [MINI], streamed=True),
    "cached tokens": Mode(chat, "cached", "acompletion", [("openai/gpt-4o-mini-cached", "OK")], priced=False),
    "embeddings": Mode(embeddings, "embeddings", "aembedding", [("openai/text-embedding-3-small", "OK")]),
    "responses": Mode(responses, "chat", "aresponses", [MINI]),
    "responses stream": Mode(responses_stream, "chat", "aresponses", [MINI], streamed=True),
    "messages": Mode(MESSAGE, "claude", "anthropic_messages", CLAUDE, priced=False),
    "messages stream": Mode(MESSAGE_STREAM, "claude", "anthropic_messages", CLAUDE, streamed=True, priced=False),
    "messages of OpenAI": Mode(MESSAGE, "chat", "anthropic_messages", [MINI]),
    "messages stream of OpenAI": Mode(MESSAGE_STREAM, "chat", "anthropic_messages", [MINI], streamed=True),
    "text completion": Mode(posted("/v1/completions", prompt="one two"), "chat", "atext_completion", [MINI]),
    "moderation": Mode(
        posted("/v1/moderations", input="one two"), "chat", "amoderation", [MINI], streamed=None, priced=False
    ),
    "fallback": Mode(chat, "fallback", "acompletion", [FAILED_503, MINI], ("503",)),
    "fallback stream": Mode(stream, "fallback", "acompletion", [FAILED_503, MINI], ("503",), streamed=True),
    "two fallbacks": Mode(chat, "two-fallbacks", "acompletion", [FAILED_503, FAILED_500, MINI], ("503", "500")),
    "retries, then another deployment": Mode(
        lambda p, m: chat(p, m, extra_body={"num_retries": 1}),
        "retried",
        "acompletion",
        [FAILED_502, FAILED_502, MINI],
        ("502", "502"),
    ),
    "a wildcard's model": Mode(lambda p, m: chat(p, "any/gpt-4o-mini"), "any/*", "acompletion", [MINI]),
    "failing": failing(chat, "failing", "acompletion", [FAILED_500], "500"),
    "failing stream": failing(stream, "failing", "acompletion", [FAILED_500], "500"),
    "failing responses": failing(responses, "failing", "aresponses", [FAILED_500], "500"),
    "failing messages": failing(
        MESSAGE, "failing-claude", "anthropic_messages", [("anthropic/claude-fail-500", "ERROR")], "500"
    ),
    "failing retries": failing(
        lambda p, m: chat(p, m, extra_body={"num_retries": 2}), "failing", "acompletion", [FAILED_500] * 3, "500"
    ),
    "rate limited": failing(chat, "limited", "acompletion", [("openai/gpt-4o-mini-fail-429", "ERROR")], "429"),
    "refused by the proxy": failing(posted("/v1/chat/completions"), "chat", "acompletion", [], "400"),
    "no such model": failing(lambda p, m: chat(p, "made up by the caller"), "chat", "acompletion", [], "400")._replace(
        named="gateway/acompletion"
    ),
    "broken stream": Mode(
        stream,
        "broken",
        "acompletion",
        [("openai/gpt-4o-mini-broken-long-20", "ERROR")],
        ("APIConnectionError",),
        "APIConnectionError",
        streamed=True,
    ),
    "broken stream of messages": Mode(
        MESSAGE_STREAM,
        "broken",
        "anthropic_messages",
        [("openai/gpt-4o-mini-broken-long-20", "ERROR")],
        ("ReadError",),
        "ReadError",
        streamed=True,
    ),
}

FINISH_REASONS = {"aresponses": ["completed"], "aembedding": None, "amoderation": None}
"""Why the model stopped, for kinds of calls that do not simply say ``stop``."""

WITH_SDK = [name for name in MODES if "messages" not in name and name not in ("text completion", "moderation")]
"""Modes in which mlflow.openai.autolog() has something to trace."""

CALLS = [(name, "start_span") for name in MODES] + [(name, "autolog") for name in WITH_SDK]


class Made(NamedTuple):
    """A call that was made: the agent's span around it, and the tokens that the agent was told."""

    step: Span
    tokens: Tokens


@pytest.fixture(scope="module")
def made(proxy: LiteLLMProxy) -> dict[tuple[str, str], Made]:
    """Each call, in a trace of its own."""
    calls = {}
    for name, instrumentation in CALLS:
        if instrumentation == "autolog":
            mlflow.openai.autolog()
        mode, tokens = MODES[name], None
        with mlflow.start_span("agent"), mlflow.start_span("step") as step, contextlib.suppress(openai.APIError):
            tokens = mode.call(proxy, mode.endpoint)
        calls[name, instrumentation] = Made(step, tokens)
    mlflow.openai.autolog(disable=True)
    mlflow.flush_trace_async_logging()
    return calls


def innermost(trace: Trace, step: Span) -> Span:
    """Return the span that the request was sent in: the one that autolog made below the agent's own, or that one."""
    own = [span for span in children_of(trace, step) if not span.name.startswith("gateway/")]
    return own[0] if own else step


each_call = pytest.mark.parametrize("call", CALLS, ids=" ".join)


@each_call
def test_the_call_is_one_trace(call: tuple[str, str], made: dict[tuple[str, str], Made], proxy: LiteLLMProxy):
    """Each call has one mirror right below the innermost span, with the status and the attempts that really were."""
    mode, (step, _) = MODES[call[0]], made[call]
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    spans = assert_mirror(trace, mirror, innermost(trace, step), mode.attempts)
    assert mirror.name == (mode.named or f"gateway/{mode.endpoint}")
    assert mirror.status.status_code == ("ERROR" if mode.error else "OK")
    facts = mirror.attributes
    assert facts.get("error.type") == mode.error
    assert facts["http.response.status_code"] == mode.status
    assert facts["mlflow.gateway.requestType"] == mode.request_type
    assert facts["server_url"] == proxy.url.removeprefix("http://")
    assert facts.get("gen_ai.request.stream") is mode.streamed
    assert ("gen_ai.response.time_to_first_chunk" in facts) is (mode.streamed is True)
    assert facts.get("agent_gateway.cache.hit") in (False, None)
    assert "mlflow.gateway.linkedTraceId" not in facts
    assert [span.attributes["error.type"] for span in spans if "error.type" in span.attributes] == list(mode.errors)
    finished = ["tool_calls"] if call[0] == "tools" else FINISH_REASONS.get(mode.request_type, ["stop"])
    for span in spans:
        is_ok = span.status.status_code == "OK"
        assert span.attributes.get("gen_ai.response.finish_reasons") == (finished if is_ok else None)


@each_call
def test_tokens_are_counted_once(call: tuple[str, str], made: dict[tuple[str, str], Made]):
    """The trace has the tokens that the agent was told, once, and their cost, with and without autolog's own count."""
    mode, (step, tokens) = MODES[call[0]], made[call]
    trace = mirrored(step)
    usage = trace.info.token_usage or {}
    if tokens is None:
        assert not usage
        return
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (*tokens, sum(tokens))
    assert (usage.get("cache_read_input_tokens") or 0) == (1 if mode.endpoint == "cached" else 0)
    (mirror,) = mirrors_in(trace)
    answered = children_of(trace, mirror)[-1]
    if mode.priced:
        assert trace.info.cost == answered.attributes["mlflow.llm.cost"]
        assert trace.info.cost["total_cost"] > 0
    else:
        assert "mlflow.llm.cost" not in answered.attributes
