"""gateway_call(): the mirror of code that is not an ASGI application."""

import asyncio
import itertools
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.client import HTTPMessage
from typing import Any

import httpx
import pytest
import starlette.datastructures
import werkzeug.datastructures

from agent_gateway_client.server import current_gateway_call, gateway_attempt, gateway_call, relayed
from agent_gateway_client.server._gateway_call import add_response
from agent_gateway_client.server.call import Cost, TokenUsage
from tests.support.asgi import Mirrors
from tests.support.server import PARENT, SPAN_ID, TRACE_ID, TRACEPARENT, facts_of
from tests.support.wire_samples import CANARY, CHAT_FACTS, SAMPLES

TRACED = {"traceparent": TRACEPARENT}


def spans_of(mirrors: Mirrors) -> list[tuple[str, dict[str, Any]]]:
    assert not any(CANARY in span.to_json() for span in mirrors.spans)
    return [(span.name, facts_of(span)) for span in mirrors.spans]


def test_a_call_and_its_attempts(mirrors: Mirrors):
    """Everything set inside the block is in the mirror, which is submitted at its end."""
    with gateway_call(
        TRACED,
        endpoint="chat",
        operation="chat",
        request_type="worker/chat",
        server_address="gw:80",
        exporter=mirrors.exporter,
    ) as call:
        assert current_gateway_call() is call
        with pytest.raises(ConnectionError), call.attempt("openai", "a"):
            raise ConnectionError(CANARY)
        with call.attempt(provider="azure", model="b") as attempt:
            attempt.usage, attempt.cost, attempt.finish_reason = TokenUsage(1, 2, 3), Cost(0.1, 0.2, 0.3), "length"
        call.http_status = 201
        assert mirrors.destination.spans == []
    assert current_gateway_call() is None
    (gateway, of_call), (first, failed), (second, answered) = spans_of(mirrors)
    assert (gateway, first, second) == ("gateway/chat", "provider/openai/a", "provider/azure/b")
    assert (of_call["mlflow.gateway.requestType"], of_call["server_url"]) == ("worker/chat", "gw:80")
    assert of_call["http.response.status_code"] == 201
    assert failed["error.type"] == "ConnectionError"
    assert answered["mlflow.chat.tokenUsage"] == {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    assert answered["mlflow.llm.cost"]["total_cost"] == 0.3
    assert answered["gen_ai.response.finish_reasons"] == ["length"]
    assert next(span.parent.span_id for span in mirrors.spans) == SPAN_ID
    assert {span.context.trace_id for span in mirrors.spans} == {TRACE_ID}


def _http_message() -> HTTPMessage:
    message = HTTPMessage()
    message["Traceparent"] = TRACEPARENT
    return message


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": [TRACEPARENT]},
        {"Traceparent": (TRACEPARENT,), "accept": None},
        _http_message(),
        werkzeug.datastructures.Headers([("Traceparent", TRACEPARENT)]),
        werkzeug.datastructures.EnvironHeaders({"HTTP_TRACEPARENT": TRACEPARENT}),
        starlette.datastructures.Headers({"traceparent": TRACEPARENT}),
        httpx.Headers({"traceparent": TRACEPARENT}),
        iter([("traceparent", TRACEPARENT)]),
    ],
    ids=lambda headers: type(headers).__name__,
)
def test_whatever_holds_the_headers(headers: Any, mirrors: Mirrors):
    """The headers of other frameworks, and lists of values as an AWS load balancer sends them, are read."""
    with gateway_call(headers, endpoint="chat", exporter=mirrors.exporter):
        pass
    assert [span.name for span in mirrors.spans] == ["gateway/chat"]


class _Broken:
    def items(self) -> Any:
        raise RuntimeError(CANARY)


@pytest.mark.parametrize(
    "headers", [None, 7, "traceparent", [1], [("a", "b", "c")], {1: 2}, {"traceparent": None}, _Broken()]
)
def test_headers_that_cannot_be_read(headers: Any, mirrors: Mirrors):
    """The code inside runs as for a caller that is not tracing."""
    ran = False
    with gateway_call(headers, exporter=mirrors.exporter) as call:
        ran = call.attempt("openai", "m") is not None
    assert ran
    assert mirrors.spans == []


@pytest.mark.parametrize(
    ("status", "number"),
    [
        ("200 OK", 200),
        ("503 Service Unavailable", 503),
        (b"404", 404),
        (HTTPStatus.NOT_FOUND, 404),
        ("late", None),
        (2.5, None),
    ],
)
def test_a_status_in_another_form(status: Any, number: int | None, mirrors: Mirrors):
    """WSGI's status line and an HTTPStatus are read as numbers; an invalid status does not fail the request."""
    with gateway_call(TRACED, exporter=mirrors.exporter) as call:
        call.http_status = status
    ((_, facts),) = spans_of(mirrors)
    assert facts.get("http.response.status_code", 200) == (number or 200)
    assert facts.get("error.type") == (str(number) if number and number >= 400 else None)


HEADERS: dict[str, Any] = {
    "none": {},
    "unsampled": {"traceparent": TRACEPARENT[:-2] + "00"},
    "invalid": {"traceparent": "00-nonsense"},
    "twice": [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)],
}


@pytest.mark.parametrize("name", HEADERS)
async def test_a_caller_that_is_not_tracing(name: str, mirrors: Mirrors):
    """The same code runs without a condition, and leaves nothing behind."""
    with gateway_call(HEADERS[name], endpoint="chat", exporter=mirrors.exporter) as call:
        assert current_gateway_call() is None
        with call.attempt("openai", "m") as attempt:
            attempt.usage = TokenUsage(1, 2)
        call.http_status = 503
        add_response(call, SAMPLES["chat"].body)
    async with gateway_call(HEADERS[name], exporter=mirrors.exporter) as call:
        assert call.attempts == []
    assert mirrors.spans == []
    assert not mirrors.exporter._reader.is_running


@pytest.mark.parametrize(
    "headers", [{"TraceParent": TRACEPARENT}, [("traceparent", TRACEPARENT)], [(b"traceparent", TRACEPARENT.encode())]]
)
def test_forms_of_headers(headers: Any, mirrors: Mirrors):
    """A mapping, and pairs of text or bytes, are accepted."""
    with gateway_call(headers, exporter=mirrors.exporter):
        pass
    assert len(mirrors.spans) == 1


@pytest.mark.parametrize("error", [ValueError(CANARY), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_an_exception_fails_the_call(error: BaseException, mirrors: Mirrors):
    """Its class is the error type, and it is raised unchanged, through with and async with."""
    with pytest.raises(type(error)) as raised, gateway_call(TRACED, exporter=mirrors.exporter):
        raise error
    assert raised.value is error
    with pytest.raises(type(error)):
        async with gateway_call(TRACED, exporter=mirrors.exporter):
            raise error
    assert [facts["error.type"] for _, facts in spans_of(mirrors)] == [type(error).__name__] * 2
    assert current_gateway_call() is None


@pytest.mark.parametrize(("status", "error"), [(200, None), (302, None), (429, "429"), (500, "500")])
def test_a_status_fails_the_call(status: int, error: str | None, mirrors: Mirrors):
    """A status of 400 or more set on the call is its failure."""
    with gateway_call(TRACED, exporter=mirrors.exporter) as call:
        call.http_status = status
    assert mirrors.error_type == error


def test_a_failure_that_is_set_stays(mirrors: Mirrors):
    """A failure set by the code inside takes precedence over the end of the block, for calls and attempts."""
    with gateway_call(TRACED, exporter=mirrors.exporter) as call, call.attempt("openai") as attempt:
        call.error_type = attempt.error_type = "quota"
    assert [facts["error.type"] for _, facts in spans_of(mirrors)] == ["quota", "quota"]


def test_an_attempt_without_a_block(mirrors: Mirrors):
    """An attempt that is begun without with lasts until it or its call ends."""
    with gateway_call(TRACED, exporter=mirrors.exporter):
        refused = gateway_attempt("a", "m")
        refused.end("429")
        gateway_attempt("b", "m")
    call, first, second = mirrors.spans
    assert [span.name for span in mirrors.spans] == ["gateway/unknown", "provider/a/m", "provider/b/m"]
    assert facts_of(first)["error.type"] == "429"
    assert first.end_time <= second.start_time
    assert second.end_time == call.end_time


def test_an_attempt_of_nobody(mirrors: Mirrors):
    """If the caller is not tracing, and outside any call, the same code runs and leaves nothing behind."""
    for _ in range(2):
        with pytest.raises(ValueError, match="x"), gateway_attempt("a") as attempt:
            raise ValueError("x")
        assert attempt.error_type == "ValueError"
    with gateway_call({}, exporter=mirrors.exporter), gateway_attempt("a"):
        pass
    assert mirrors.spans == []


async def test_tasks_and_threads_at_once(mirrors: Mirrors):
    """200 calls in tasks and 200 in threads: each sees its own call, and has its own caller's span as parent."""

    def headers(number: int) -> dict[str, str]:
        return {"traceparent": PARENT._replace(span_id=number).traceparent}

    async def task(number: int) -> None:
        async with gateway_call(headers(number), endpoint=f"e{number}", exporter=mirrors.exporter) as call:
            await asyncio.sleep(0)
            assert current_gateway_call() is call
            assert await asyncio.to_thread(current_gateway_call) is call

    def thread(number: int) -> None:
        with gateway_call(headers(number), endpoint=f"e{number}", exporter=mirrors.exporter) as call:
            assert current_gateway_call() is call

    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(thread, number) for number in range(1, 201)]
        await asyncio.gather(*(task(number) for number in range(201, 401)))
        for future in futures:
            future.result()
    found = sorted((span.parent.span_id, span.name) for span in mirrors.spans)
    assert found == [(number, f"gateway/e{number}") for number in range(1, 401)]


@pytest.mark.parametrize("name", ["chat", "chat stream", "message stream"])
@pytest.mark.parametrize("attempted", [False, True])
def test_a_response_is_read(name: str, attempted: bool, mirrors: Mirrors):
    """Code that relays a provider's bytes gets tokens and finish reason from them with one function call."""
    sample = SAMPLES[name]
    with gateway_call(TRACED, endpoint="chat", exporter=mirrors.exporter) as call:
        if attempted:
            with call.attempt("acme"):
                pass
        add_response(call, sample.chunks, streaming=sample.streaming)
    (_, of_call), (attempt, facts) = spans_of(mirrors)
    assert attempt == f"provider/{'acme/' if attempted else ''}{sample.facts.model}"
    assert facts["mlflow.chat.tokenUsage"]["total_tokens"] == sample.facts.usage.total_tokens  # type: ignore[union-attr]
    assert facts["gen_ai.response.finish_reasons"] == [sample.facts.finish_reason]
    assert "error.type" not in of_call


def test_a_failure_inside_a_response(mirrors: Mirrors):
    """An error event in the provider's stream fails the call although the code around it sees no error."""
    with gateway_call(TRACED, exporter=mirrors.exporter) as call:
        add_response(
            call, b'data: {"model": "m"}\n\ndata: {"error": {"code": 502, "message": "no"}}\n\n', streaming=True
        )
    assert [facts["error.type"] for _, facts in spans_of(mirrors)] == ["502", "502"]


def stream(mirrors: Mirrors, chunks: Iterable[bytes] = SAMPLES["chat stream"].chunks) -> Generator[bytes, None, None]:
    """Stream a response from inside its call, as a WSGI gateway does."""
    with gateway_call(TRACED, endpoint="chat", exporter=mirrors.exporter) as call, call.attempt("acme"):
        call.http_status = 200
        yield from relayed(call, chunks, streaming=True)


def test_a_generator_that_runs_to_its_end(mirrors: Mirrors):
    """The call is a stream that lasts until its last chunk; the facts of the stream belong to the attempt."""
    chunks = stream(mirrors)
    received = []
    for chunk in chunks:
        received.append(chunk)
        last_ns = time.time_ns()
    assert b"".join(received) == SAMPLES["chat stream"].body
    (name, of_call), (attempt, facts) = spans_of(mirrors)
    assert (name, attempt) == ("gateway/chat", f"provider/acme/{CHAT_FACTS.model}")
    assert mirrors.error_type is None
    assert (of_call["gen_ai.request.stream"], of_call["gen_ai.response.time_to_first_chunk"] > 0) == (True, True)
    assert facts["mlflow.chat.tokenUsage"]["total_tokens"] == CHAT_FACTS.usage.total_tokens  # type: ignore[union-attr]
    assert all(span.end_time <= last_ns for span in mirrors.spans)


def test_a_generator_that_is_closed(mirrors: Mirrors):
    """A server closes the generator when its client disconnects; the call and its attempt record this."""
    chunks = stream(mirrors)
    next(chunks)
    chunks.close()
    assert [facts["error.type"] for _, facts in spans_of(mirrors)] == ["client_disconnect"] * 2


def test_a_generator_that_is_closed_after_the_last_event(mirrors: Mirrors):
    """Many clients disconnect as soon as they have the last event; their calls are complete."""
    events = SAMPLES["chat stream"].chunks
    chunks = stream(mirrors, [*events, b"\n"])
    assert list(itertools.islice(chunks, len(events))) == list(events)
    chunks.close()
    assert mirrors.error_type is None
    assert facts_of(mirrors.spans[1])["mlflow.chat.tokenUsage"]


def test_a_provider_that_breaks_off(mirrors: Mirrors):
    """A stream that breaks off is the provider's failure, with the facts read until then."""

    def broken() -> Iterator[bytes]:
        yield SAMPLES["chat stream"].chunks[0]
        raise TimeoutError(CANARY)

    with pytest.raises(TimeoutError):
        list(stream(mirrors, broken()))
    (_, of_call), (attempt, facts) = spans_of(mirrors)
    assert (of_call["error.type"], facts["error.type"]) == ("TimeoutError", "TimeoutError")
    assert attempt == f"provider/acme/{CHAT_FACTS.model}"


def test_a_generator_that_ends_in_another_thread(mirrors: Mirrors):
    """A server may begin a stream in one thread and end it in another; the call still ends."""
    chunks = stream(mirrors)
    starter = threading.Thread(target=next, args=(chunks,))
    starter.start()
    starter.join()
    list(chunks)
    assert mirrors.error_type is None
    assert current_gateway_call() is None
