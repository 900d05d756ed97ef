"""An agent with OpenAI's SDK, with nothing but mlflow.start_span and with mlflow.openai.autolog()."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import mlflow
import mlflow.openai
import openai
import pytest
from e2e_support import (
    USER,
    assert_linked,
    assert_mirror,
    async_openai_client,
    children_of,
    mirrored,
    mirrors_in,
    openai_client,
    tracing_into,
)
from mlflow.entities import Span, Trace

from agent_gateway_client.demo.gateway import DemoGateway

MINI = ("openai/gpt-4o-mini", "OK")
INSTRUMENTATIONS = ["start_span", "autolog"]

Tokens = tuple[int, int] | None
"""Input and output tokens as the SDK hands them to the agent; ``None`` where the call fails."""


def chat(client: Any, endpoint: str, **options: Any) -> Any:
    return client.chat.completions.create(model=endpoint, messages=[USER], **options)


def tokens_of(answer: Any) -> Tokens:
    usage = answer.usage
    return usage.prompt_tokens, usage.completion_tokens


def tokens_of_response(response: Any) -> Tokens:
    return response.usage.input_tokens, response.usage.output_tokens


STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def stream(client: openai.OpenAI, endpoint: str) -> Tokens:
    *_, last = chat(client, endpoint, **STREAM)
    return tokens_of(last)


async def async_stream(client: openai.AsyncOpenAI, endpoint: str) -> Tokens:
    *_, last = [chunk async for chunk in await chat(client, endpoint, **STREAM)]
    return tokens_of(last)


async def async_chat(client: openai.AsyncOpenAI, endpoint: str) -> Tokens:
    return tokens_of(await chat(client, endpoint))


def responses(client: openai.OpenAI, endpoint: str) -> Tokens:
    return tokens_of_response(client.responses.create(model=endpoint, input="one two three"))


def responses_stream(client: openai.OpenAI, endpoint: str) -> Tokens:
    *_, last = client.responses.create(model=endpoint, input="one two three", stream=True)
    return tokens_of_response(last.response)  # type: ignore[union-attr]


async def async_responses(client: openai.AsyncOpenAI, endpoint: str) -> Tokens:
    return tokens_of_response(await client.responses.create(model=endpoint, input="one two three"))


def embeddings(client: openai.OpenAI, endpoint: str) -> Tokens:
    return client.embeddings.create(model=endpoint, input=["one", "two three"]).usage.prompt_tokens, 0


class Mode(NamedTuple):
    """What the agent does.

    Attributes:
        call: Makes the call with a sync or an async client, and returns the tokens it was told.
        endpoint: The gateway's endpoint.
        attempts: ``provider/model`` and status of each attempt that the gateway makes.
        error: The type of the failure the call ends with, for the gateway.
        status: The HTTP status.
    """

    call: Callable[[Any, str], Tokens | Awaitable[Tokens]]
    endpoint: str
    attempts: list[tuple[str, str]]
    error: str | None = None
    status: int = 200


FALLBACK = [("openai/gpt-4o-fail-503", "ERROR"), MINI]
FAILING = [("openai/gpt-4o-mini-fail-500", "ERROR")]
BROKEN = [("openai/gpt-4o-mini-broken", "ERROR")]
MODES = {
    "chat": Mode(lambda client, endpoint: tokens_of(chat(client, endpoint)), "chat", [MINI]),
    "stream": Mode(stream, "chat", [MINI]),
    "async": Mode(async_chat, "chat", [MINI]),
    "async stream": Mode(async_stream, "chat", [MINI]),
    "responses": Mode(responses, "responses", [MINI]),
    "responses stream": Mode(responses_stream, "responses", [MINI]),
    "async responses": Mode(async_responses, "responses", [MINI]),
    "embeddings": Mode(embeddings, "embeddings", [("openai/text-embedding-3-small", "OK")]),
    "fallback": Mode(lambda client, endpoint: tokens_of(chat(client, endpoint)), "fallback", FALLBACK),
    "fallback stream": Mode(stream, "fallback", FALLBACK),
    "failing": Mode(lambda client, endpoint: tokens_of(chat(client, endpoint)), "failing", FAILING, "500", 500),
    "failing async": Mode(async_chat, "failing", FAILING, "500", 500),
    "failing stream": Mode(stream, "failing", FAILING, "500"),
    "failing responses": Mode(responses, "failing", FAILING, "500", 500),
    "broken stream": Mode(stream, "broken", BROKEN, "ClientPayloadError"),
}


class Made(NamedTuple):
    """A call that was made: the agent's span around it, and the tokens that the agent was told."""

    step: Span
    tokens: Tokens


@pytest.fixture(scope="module")
def made(gateway: DemoGateway) -> dict[tuple[str, str], Made]:
    """A call of each mode with each instrumentation, each in a trace of its own."""
    calls = {}

    def run(mode: Mode) -> Made:
        with mlflow.start_span("agent"), mlflow.start_span("step") as step:
            try:
                with openai_client(gateway) as client:
                    tokens = mode.call(client, mode.endpoint)
                assert not isinstance(tokens, Awaitable)
            except openai.APIError:
                tokens = None
        return Made(step, tokens)

    async def run_async(mode: Mode) -> Made:
        with mlflow.start_span("agent"), mlflow.start_span("step") as step:
            try:
                async with async_openai_client(gateway) as client:
                    awaitable = mode.call(client, mode.endpoint)
                    assert isinstance(awaitable, Awaitable)
                    tokens = await awaitable
            except openai.APIError:
                tokens = None
        return Made(step, tokens)

    with tracing_into(gateway):
        try:
            for instrumentation in INSTRUMENTATIONS:
                if instrumentation == "autolog":
                    mlflow.openai.autolog()
                for name, mode in MODES.items():
                    is_async = asyncio.iscoroutinefunction(mode.call)
                    calls[name, instrumentation] = asyncio.run(run_async(mode)) if is_async else run(mode)
        finally:
            mlflow.openai.autolog(disable=True)
    return calls


def innermost(trace: Trace, step: Span, instrumentation: str) -> Span:
    """Return the span that the request was sent in: the agent's own, or the one that autolog made below it."""
    if instrumentation == "start_span":
        return step
    (own,) = children_of(trace, step)
    assert not own.name.startswith("gateway/")
    return own


each_call = pytest.mark.parametrize("instrumentation", INSTRUMENTATIONS)
each_mode = pytest.mark.parametrize("name", MODES)


@each_mode
@each_call
def test_the_call_is_one_trace(name: str, instrumentation: str, made: dict[tuple[str, str], Made]):
    """Each call has one mirror right below the innermost span, with the status and the attempts that really were."""
    mode = MODES[name]
    step, tokens = made[name, instrumentation]
    assert (tokens is None) is (mode.error is not None)
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    caller = innermost(trace, step, instrumentation)
    spans = assert_mirror(trace, mirror, caller, mode.attempts)
    assert mirror.name == f"gateway/{mode.endpoint}"
    assert mirror.status.status_code == ("ERROR" if mode.error else "OK")
    assert mirror.attributes.get("error.type") == mode.error
    assert mirror.attributes["http.response.status_code"] == mode.status
    errors = [span.attributes.get("error.type") for span in spans]
    assert errors == {"fallback": ["503", None]}.get(mode.endpoint, [mode.error])
    own = assert_linked(mirror)
    assert own.info.state == ("ERROR" if mode.error else "OK")


@each_mode
@each_call
def test_tokens_are_counted_once(name: str, instrumentation: str, made: dict[tuple[str, str], Made]):
    """The trace has the tokens that the agent was told, once, and their cost, with and without autolog's own count."""
    step, tokens = made[name, instrumentation]
    trace = mirrored(step)
    if tokens is None:
        assert not trace.info.token_usage
        return
    usage = trace.info.token_usage or {}
    assert (usage.get("input_tokens"), usage.get("output_tokens", 0)) == tokens
    assert usage["total_tokens"] == sum(tokens)
    assert trace.info.cost is not None
    leaves = [span for span in trace.data.spans if not children_of(trace, span)]
    (cost,) = [span.attributes["mlflow.llm.cost"] for span in leaves if "mlflow.llm.cost" in span.attributes]
    assert trace.info.cost == cost
    assert cost["total_cost"] > 0


@each_mode
def test_nothing_else_is_different_with_autolog(name: str, made: dict[tuple[str, str], Made]):
    """Mirrors say the same with and without autolog at the client, but for ids and times."""
    facts = []
    for instrumentation in INSTRUMENTATIONS:
        (mirror,) = mirrors_in(mirrored(made[name, instrumentation].step))
        told = dict(mirror.attributes)
        for own in ("mlflow.traceRequestId", "mlflow.gateway.linkedTraceId"):
            assert told.pop(own)
        told.pop("gen_ai.response.time_to_first_chunk", None)
        facts.append(told)
    assert facts[0] == facts[1]
