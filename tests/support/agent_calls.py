"""An agent's calls with OpenAI's SDK, the same through every gateway, and their traces."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import mlflow
import mlflow.openai
import openai
from mlflow.entities import Span, Trace

from tests.support.e2e import USER, children_of, mirrored, mirrors_in, read_trace
from tests.support.gateways import MLFLOW, Column

Tokens = tuple[int, int]
"""Input and output tokens as the SDK returns them to the agent."""

STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def tokens_of(answer: Any) -> Tokens:
    usage = answer.usage
    if hasattr(usage, "input_tokens"):
        return usage.input_tokens, usage.output_tokens
    return usage.prompt_tokens, getattr(usage, "completion_tokens", 0)


def chat(column: Column, model: str, **options: Any) -> Tokens:
    with column.openai_client() as client:
        return tokens_of(client.chat.completions.create(model=model, messages=[USER], **options))


def stream(column: Column, model: str) -> Tokens:
    with column.openai_client() as client:
        *_, last = client.chat.completions.create(model=model, messages=[USER], **STREAM)
    return tokens_of(last)


def async_chat(column: Column, model: str) -> Tokens:
    async def run() -> Any:
        async with column.async_openai_client() as client:
            messages: Any = [USER]
            return await client.chat.completions.create(model=model, messages=messages)

    return tokens_of(asyncio.run(run()))


def async_stream(column: Column, model: str) -> Tokens:
    async def run() -> Any:
        async with column.async_openai_client() as client:
            chunks: Any = await client.chat.completions.create(model=model, messages=[USER], **STREAM)
            *_, last = [chunk async for chunk in chunks]
            return last

    return tokens_of(asyncio.run(run()))


def responses(column: Column, model: str) -> Tokens:
    with column.openai_client() as client:
        return tokens_of(client.responses.create(model=model, input="one two three"))


def responses_stream(column: Column, model: str) -> Tokens:
    with column.openai_client() as client:
        *_, last = client.responses.create(model=model, input="one two three", stream=True)
    return tokens_of(last.response)  # type: ignore[union-attr]


def embeddings(column: Column, model: str) -> Tokens:
    with column.openai_client() as client:
        return tokens_of(client.embeddings.create(model=model, input=["one", "two three"]))


class Mode(NamedTuple):
    """A way to call a model.

    Attributes:
        call: Makes the call, and returns the tokens that the agent got.
        model: The requested model.
        streamed: Whether the response is a stream.
    """

    call: Callable[[Column, str], Tokens]
    model: str
    streamed: bool = False


MODES = {
    "chat": Mode(chat, "chat"),
    "stream": Mode(stream, "chat", streamed=True),
    "async": Mode(async_chat, "chat"),
    "async stream": Mode(async_stream, "chat", streamed=True),
    "responses": Mode(responses, "responses"),
    "responses stream": Mode(responses_stream, "responses", streamed=True),
    "embeddings": Mode(embeddings, "embeddings"),
    "fallback": Mode(chat, "fallback"),
    "fallback stream": Mode(stream, "fallback", streamed=True),
    "failing": Mode(chat, "failing"),
    "failing stream": Mode(stream, "failing", streamed=True),
    "cut stream": Mode(stream, "cut", streamed=True),
}

INSTRUMENTATIONS = ["start_span", "autolog"]

AUTOLOG_ENDS_FAILED_STREAMS = MLFLOW > (3, 15)
"""MLflow 3.15 never ends autolog's span of a stream that fails, and so never sends the agent's trace."""


class Call(NamedTuple):
    """A call, and its result in the trace.

    Attributes:
        mode: The way it was made.
        caller: The innermost span that was active when the request was sent.
        tokens: The tokens that the agent got; ``None`` if the call failed.
        status: The HTTP status that the agent saw.
        models: The models that had to be tried.
        trace: The agent's trace.
        mirrors: The gateway's spans in it.
        attempts: The spans of the provider's attempts.
    """

    mode: Mode
    caller: Span
    tokens: Tokens | None
    status: int
    models: list[str]
    trace: Trace
    mirrors: list[Span]
    attempts: list[Span]

    @property
    def mirror(self) -> Span:
        """The gateway's span."""
        return self.mirrors[0]


class _Made(NamedTuple):
    step: Span
    tokens: Tokens | None
    status: int


def make_calls(column: Column) -> dict[str, Call]:
    """Call in each mode with each instrumentation, each in a separate trace, and read the traces."""
    made, never_sent = {}, []
    for instrumentation in INSTRUMENTATIONS:
        with _instrumented(instrumentation):
            for name, mode in MODES.items():
                one = _make(mode, column)
                is_broken = one.tokens is None and one.status == 200
                if is_broken and instrumentation == "autolog" and not AUTOLOG_ENDS_FAILED_STREAMS:
                    never_sent.append(one.step.trace_id)
                else:
                    made[f"{name}, {instrumentation}"] = (mode, one)
    calls = {name: _read(column, *one) for name, one in made.items()}
    assert [trace_id for trace_id in never_sent if read_trace(trace_id)] == []
    return calls


@contextlib.contextmanager
def _instrumented(instrumentation: str) -> Any:
    if instrumentation == "autolog":
        mlflow.openai.autolog()
    yield
    mlflow.openai.autolog(disable=True)


def _make(mode: Mode, column: Column) -> _Made:
    tokens, status = None, 200
    with mlflow.start_span("agent"), mlflow.start_span("step") as step:
        try:
            tokens = mode.call(column, mode.model)
        except (openai.APIError, httpx.HTTPError) as error:
            status = getattr(error, "status_code", status)
    return _Made(step, tokens, status)


def _read(column: Column, mode: Mode, made: _Made) -> Call:
    trace = mirrored(made.step)
    own = [span for span in children_of(trace, made.step) if not span.name.startswith("gateway/")]
    mirrors = mirrors_in(trace)
    return Call(
        mode,
        caller=own[0] if own else made.step,
        tokens=made.tokens,
        status=made.status,
        models=column.tried(mode.model, streamed=mode.streamed),
        trace=trace,
        mirrors=mirrors,
        attempts=children_of(trace, mirrors[0]),
    )
