"""asgi.py: the mirror of a call through the middleware, and that the middleware changes nothing."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agent_gateway_client.server import GatewayTracingMiddleware, current_gateway_call
from agent_gateway_client.server.mirror import Convention
from agent_gateway_client.w3c import TraceContext
from tests.support.asgi import EVENTS, JSON, TRACED, Client, Mirrors, answering, body, http_scope, start
from tests.support.server import DEADLINE_S, SPAN_ID, TRACE_ID, TRACEPARENT

ANSWERS = {
    "json": [start(), body(b'{"a": 1}')],
    "empty": [start(204, []), body(b"")],
    "no body key": [start(), {"type": "http.response.body"}],
    "error": [start(503), body(b"busy")],
    "chunks": [start(), body(b"a", True), body(b"", True), body(b"b", True), body(b"")],
    "events": [start(200, EVENTS), body(b"data: 1\n\n", True), body(b"data: [DONE]\n\n", True), body(b"")],
    "odd bytes": [start(), body(bytes(range(256)))],
    "unknown message": [start(), {"type": "http.response.debug", "info": {}}, body()],
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("headers", [TRACED, []], ids=["traced", "not traced"])
async def test_the_answer_is_passed_on_as_it_is(name: str, headers: Any, mirrors: Mirrors):
    """The client gets the very same messages in the same order, traced or not."""
    messages = ANSWERS[name]
    copies = [dict(message) for message in messages]
    client = Client()
    await GatewayTracingMiddleware(answering(*messages), mirrors.exporter)(
        http_scope(headers), client.receive, client.send
    )
    assert [id(message) for message in client.sent] == [id(message) for message in messages]
    assert messages == copies
    assert len(mirrors.spans) == (1 if headers else 0)


async def test_nothing_is_held_back(mirrors: Mirrors):
    """A chunk has reached the client when the application's send() returns."""
    client = Client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in ANSWERS["events"]:
            await send(message)
            assert client.sent[-1] is message

    await GatewayTracingMiddleware(app, mirrors.exporter)(http_scope(), client.receive, client.send)
    assert mirrors.error_type is None


async def test_the_application_gets_the_request_as_it_is(mirrors: Mirrors):
    """The application gets the server's own scope and request messages."""
    scope = http_scope()
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, await receive()))
        await send(start())
        await send(body())

    client = Client()
    await GatewayTracingMiddleware(app, mirrors.exporter)(scope, client.receive, client.send)
    assert seen[0][0] is scope
    assert seen[0][1] == {"type": "http.request", "body": b"{}", "more_body": False}


@pytest.mark.parametrize("headers", [TRACED, []], ids=["traced", "not traced"])
async def test_request_headers_that_can_be_read_once(headers: Any, mirrors: Mirrors):
    """ASGI allows any iterable. The application gets all of them."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])
        await send(start())
        await send(body())

    client = Client()
    scope = {**http_scope(), "headers": iter(headers)}
    await GatewayTracingMiddleware(app, mirrors.exporter)(scope, client.receive, client.send)
    assert seen == headers
    assert len(mirrors.spans) == len(headers)


async def test_only_traced_requests_are_looked_at(mirrors: Mirrors):
    """is_call() is not called for a request whose caller is not tracing."""
    asked = []
    app = GatewayTracingMiddleware(
        answering(*ANSWERS["json"]), mirrors.exporter, is_call=lambda scope: asked.append(scope["path"]) or True
    )
    for path, headers in (("/a", []), ("/b", TRACED)):
        client = Client()
        await app(http_scope(headers, path=path), client.receive, client.send)
    assert asked == ["/b"]


async def test_a_call_is_told(mirrors: Mirrors):
    """The mirror is a child of the caller's span with address and route; normal values are left out."""
    client = Client()
    await GatewayTracingMiddleware(answering(*ANSWERS["json"]), mirrors.exporter)(
        http_scope(), client.receive, client.send
    )
    (span,) = mirrors.spans
    assert (span.name, span.context.trace_id, span.parent.span_id) == (
        "gateway/chat/completions",
        TRACE_ID,
        SPAN_ID,
    )
    assert span.start_time <= span.end_time
    assert mirrors.only == {
        "mlflow.traceRequestId": f"tr-{TRACE_ID:032x}",
        "mlflow.spanType": "LLM",
        "endpoint_name": "chat/completions",
        "mlflow.gateway.requestType": "chat/completions",
        "server_url": "127.0.0.1:5000",
    }


async def test_a_call_is_told_over_otlp():
    """Over OTLP the mirror also has the status and that the answer was not a stream."""
    mirrors = Mirrors(Convention.OTEL)
    client = Client()
    await GatewayTracingMiddleware(answering(*ANSWERS["json"]), mirrors.exporter)(
        http_scope(), client.receive, client.send
    )
    assert mirrors.only == {
        "agent_gateway.endpoint.name": "chat/completions",
        "agent_gateway.request.type": "chat/completions",
        "server.address": "127.0.0.1",
        "server.port": 5000,
        "gen_ai.request.stream": False,
        "http.response.status_code": 200,
    }


@pytest.mark.parametrize(
    "content_type",
    [
        b"text/event-stream",
        b"text/event-stream; charset=utf-8",
        b"application/x-ndjson",
        b"application/vnd.amazon.eventstream",
    ],
)
async def test_a_stream_is_told(content_type: bytes, mirrors: Mirrors):
    """A streamed answer is mirrored as a stream, with a time to first chunk within the span's duration."""
    messages = [start(200, [(b"Content-Type", content_type)]), body(b"", True), body(b"a", True), body(b"b", True)]
    client = Client()
    app = answering(*messages, body(b""))
    await GatewayTracingMiddleware(app, mirrors.exporter)(http_scope(), client.receive, client.send)
    (span,) = mirrors.spans
    assert mirrors.only["gen_ai.request.stream"] is True
    seconds = mirrors.only["gen_ai.response.time_to_first_chunk"]
    assert 0 <= seconds <= (span.end_time - span.start_time) / 1e9


async def test_a_mirror_ends_before_the_client_has_the_answer(mirrors: Mirrors):
    """The mirror's end is taken before the last bytes are sent, so that the client's span contains it."""
    client = Client()
    times = [time.time_ns()]

    async def send(message: Any) -> None:
        if message.get("body"):
            times.append(time.time_ns())
        await client.send(message)

    await GatewayTracingMiddleware(answering(*ANSWERS["events"]), mirrors.exporter)(http_scope(), client.receive, send)
    (span,) = mirrors.spans
    assert len(times) == 3
    assert times[0] <= span.start_time <= times[1] <= span.end_time <= times[2]


async def test_attempts_are_added_by_the_application(mirrors: Mirrors):
    """Code that serves the request adds facts to the current call, also in threads and tasks that it starts."""

    def in_thread() -> None:
        call = current_gateway_call()
        assert call is not None
        with call.attempt("openai", "gpt-4o"):
            call.endpoint = "chat"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(in_thread)
        await send(start())
        await send(body())

    client = Client()
    await GatewayTracingMiddleware(app, mirrors.exporter)(http_scope(), client.receive, client.send)
    assert [span.name for span in mirrors.spans] == ["gateway/chat", "provider/openai/gpt-4o"]
    assert current_gateway_call() is None


NO_MIRROR = {
    "none": [],
    "unsampled": [(b"traceparent", TRACEPARENT[:-2].encode() + b"00")],
    "random but unsampled": [(b"traceparent", TRACEPARENT[:-2].encode() + b"02")],
    "invalid": [(b"traceparent", b"00-canary-01")],
    "all zero": [(b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01")],
    "upper-case value": [(b"traceparent", TRACEPARENT.upper().encode())],
    "twice": TRACED * 2,
    "twice in different case": [*TRACED, (b"TraceParent", TRACEPARENT.encode())],
    "oversized": [(b"traceparent", TRACEPARENT.encode() + b"0" * 100_000)],
}


@pytest.mark.parametrize("name", NO_MIRROR)
async def test_no_mirror_without_a_valid_sampled_parent(name: str, mirrors: Mirrors):
    """Such a request is served as if it had no traceparent: the same answer, no call, no mirror."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_gateway_call())
        await answering(*ANSWERS["json"])(scope, receive, send)

    client = Client()
    scope = http_scope(NO_MIRROR[name])
    await GatewayTracingMiddleware(app, mirrors.exporter)(scope, client.receive, client.send)
    assert seen == [None]
    assert client.content == b'{"a": 1}'
    assert mirrors.spans == []


@pytest.mark.parametrize(
    "tracestate", [b"a=1,a=2", b"A=1", b"?", b",".join(b"k%d=%s" % (i, b"v" * 250) for i in range(40))]
)
async def test_a_malformed_tracestate_costs_no_mirror(tracestate: bytes, mirrors: Mirrors):
    """Only the tracestate is dropped: W3C requires that it does not affect the traceparent."""
    client = Client()
    app = GatewayTracingMiddleware(answering(*ANSWERS["json"]), mirrors.exporter)
    await app(http_scope([*TRACED, (b"tracestate", tracestate)]), client.receive, client.send)
    assert len(mirrors.spans) == 1


@pytest.mark.parametrize("name", [b"TRACEPARENT", b"TraceParent"])
async def test_the_case_of_the_name_does_not_matter(name: bytes, mirrors: Mirrors):
    """A server that keeps the case of header names (uvicorn does not) gives the same result."""
    client = Client()
    app = GatewayTracingMiddleware(answering(*ANSWERS["json"]), mirrors.exporter)
    await app(http_scope([(name, TRACEPARENT.encode())]), client.receive, client.send)
    assert len(mirrors.spans) == 1


@pytest.mark.parametrize(
    ("scope", "app_sees"),
    [
        (http_scope(method="GET"), "http"),
        (http_scope(method="OPTIONS"), "http"),
        ({"type": "websocket", "path": "/", "headers": TRACED}, "websocket"),
    ],
)
async def test_what_is_no_call_is_left_alone(scope: dict[str, Any], app_sees: str, mirrors: Mirrors):
    """Other methods and websockets reach the application with the server's own scope, receive and send."""
    client = Client()
    seen = []

    async def app(*arguments: Any) -> None:
        seen.append(arguments)

    await GatewayTracingMiddleware(app, mirrors.exporter)(scope, client.receive, client.send)
    assert seen == [(scope, client.receive, client.send)]
    assert seen[0][0] is scope
    assert seen[0][0]["type"] == app_sees
    assert mirrors.spans == []


async def test_many_calls_at_once(mirrors: Mirrors):
    """50 calls in one trace and 20 traces at once: each mirror has its own caller's span as parent."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        call = current_gateway_call()
        assert call is not None
        call.endpoint = scope["path"]
        await answering(*ANSWERS["chunks"])(scope, receive, send)

    middleware = GatewayTracingMiddleware(app, mirrors.exporter, is_call=lambda scope: True)
    parents = [TraceContext(TRACE_ID, number, 1) for number in range(1, 51)]
    parents += [TraceContext(number, number, 1) for number in range(1000, 1020)]

    async def call(parent: TraceContext) -> None:
        client = Client()
        headers = [(b"traceparent", parent.traceparent.encode())]
        await middleware(http_scope(headers, path=parent.traceparent), client.receive, client.send)

    await asyncio.gather(*map(call, parents))
    found = [(span.context.trace_id, span.parent.span_id, span.name) for span in mirrors.spans]
    assert sorted(found) == sorted((p.trace_id, p.span_id, f"gateway/{p.traceparent}") for p in parents)
    assert len({span.context.span_id for span in mirrors.spans}) == 70


async def test_under_a_real_application_and_client(mirrors: Mirrors):
    """With Starlette and httpx, plain and streamed answers are the same with and without the middleware."""

    async def plain(request: Request) -> Response:
        return JSONResponse(await request.json(), 201, {"x-kept": "1"})

    async def stream(request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            for number in range(5):
                yield b"data: %d\n\n" % number

        return StreamingResponse(chunks(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/plain", plain, methods=["POST"]), Route("/stream", stream, methods=["POST"])])
    answers = []
    for served in (app, GatewayTracingMiddleware(app, mirrors.exporter, is_call=lambda scope: True)):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://gw:5000") as client:
            for path in ("/plain", "/stream"):
                answer = await client.post(path, json={"a": 1}, headers={"traceparent": TRACEPARENT})
                answers.append((answer.status_code, answer.headers.raw, answer.content))
    assert answers[:2] == answers[2:]
    assert [span.status.is_ok for span in mirrors.spans] == [True, True]


NAMES = st.sampled_from([b"traceparent", b"TRACEPARENT", b"x-traceparent", b"tracepar\xff\xff\xff"]) | st.binary(
    max_size=20
)
NEARLY = st.from_regex(rb"0[01]-[0-9a-f]{32}-[0-9a-f]{15,17}-0[0-3](-x)?", fullmatch=True)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, NEARLY | st.binary(max_size=60)), max_size=4))
def test_junk_headers(headers: list[tuple[bytes, bytes]]):
    """Whatever the headers hold, the request is served, and mirrored only with exactly one valid traceparent."""
    mirrors, client = Mirrors(), Client()
    app = GatewayTracingMiddleware(answering(start(200, JSON), body(b"ok")), mirrors.exporter)
    asyncio.run(app(http_scope(headers), client.receive, client.send))
    assert client.content == b"ok"
    values = [value.strip(b" \t") for name, value in headers if name.lower() == b"traceparent"]
    right = rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][13579bdf](-.*)?"
    is_right = len(values) == 1 and re.fullmatch(right, values[0], re.DOTALL) is not None
    if is_right and values[0].startswith(b"00"):
        is_right = len(values[0]) == 55
    if not is_right:
        assert mirrors.exporter.flush(DEADLINE_S)
        assert mirrors.destination.tries == []
    else:
        assert len(mirrors.spans) == 1
