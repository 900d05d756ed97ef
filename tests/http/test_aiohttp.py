"""instrument(): aiohttp, whose requests use no transport that a test could replace."""

import asyncio
from collections.abc import Iterator
from typing import Any

import mlflow
import pytest
from opentelemetry import trace

from agent_gateway_client import instrument, uninstrument
from agent_gateway_client.http import _process_wide as instrumentation
from tests.support.client import (
    TRACEPARENT,
    BrokenSpan,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
    otel_span,
    remote_span,
    warnings_in,
)
from tests.support.http_server import HttpServer, via

aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not in this environment's constraints file")


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server
    uninstrument()


async def get(url: str, session: Any = None, **options: Any) -> None:
    """Send one request and read its answer."""
    async with session or aiohttp.ClientSession(trust_env=False) as own, own.get(url, **options) as response:
        assert response.status == 200
        await response.read()


async def test_every_session_is_reached(server: HttpServer):
    """Sessions made before and after it send the active span to a gateway, and nothing elsewhere or after the undo."""
    before = aiohttp.ClientSession()
    with mlflow.start_span("agent") as agent, instrument(server.gateway):
        await get(server.gateway, before)
        await get(server.gateway)
        await get(server.other)
    with mlflow.start_span("agent"):
        await get(server.gateway)
    assert server.sent() == [[named_by(agent)], [named_by(agent)], [], []]


async def test_what_is_sent_follows_the_rules(server: HttpServer):
    """A traceparent of the request or the session is kept; OpenTelemetry's span counts; a tracestate is sent along."""
    with instrument(server.gateway):
        await get(server.gateway)
        with mlflow.start_span("agent"):
            await get(server.gateway, headers={"TraceParent": TRACEPARENT})
            await get(server.gateway, aiohttp.ClientSession(headers={"TRACEPARENT": TRACEPARENT}))
        with otel_span() as otel:
            await get(server.gateway)
        with remote_span() as remote:
            await get(server.gateway)
    assert server.sent() == [[], [TRACEPARENT], [TRACEPARENT], [named_by_otel(otel)], [remote]]
    assert server.sent("tracestate") == [[], [], [], [], ["vendor=1"]]


async def test_each_hop_of_a_redirect_is_looked_at(server: HttpServer):
    """Only hops to gateways have our header; the user's own goes wherever aiohttp sends it."""
    with instrument(server.gateway), mlflow.start_span("agent") as agent:
        await get(via(server.gateway, server.gateway + "/2", server.other, server.gateway + "/3", server.other))
        await get(via(server.gateway, server.other), headers={"traceparent": TRACEPARENT})
    ours = [named_by(agent)]
    assert server.sent() == [ours, ours, [], ours, [], [TRACEPARENT], [TRACEPARENT]]


async def test_a_request_that_is_sent_again_says_what_is_true_then(server: HttpServer):
    """A middleware may send one request twice; the only header has the span that is active each time."""
    if not hasattr(aiohttp, "ClientHandlerType"):
        pytest.skip(f"aiohttp {aiohttp.__version__} has no middlewares yet")
    spans = []

    async def twice(request: Any, handler: Any) -> Any:
        for name in ("first", "second"):
            with mlflow.start_span(name) as span:
                spans.append(span)
                response = await handler(request)
                await response.read()
        return response

    with instrument(server.gateway):
        await get(server.gateway, aiohttp.ClientSession(middlewares=[twice]))
    assert server.sent() == [[named_by(span)] for span in spans]
    assert len(spans) == 2


@pytest.mark.usefixtures("guards_hold")
async def test_nothing_inside_fails_a_request(server: HttpServer, caplog: pytest.LogCaptureFixture):
    """If something fails inside, the request is sent unchanged, with one warning."""
    with instrument(server.gateway), trace.use_span(BrokenSpan()):
        await get(server.gateway)
        await get(server.gateway)
    assert server.sent() == [[], []]
    (warning,) = warnings_in(caplog)
    assert "aiohttp" in warning


@pytest.mark.usefixtures("guards_hold")
async def test_a_request_that_is_not_as_expected_is_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """If aiohttp's request has changed, it is sent without the header, with one warning that has the version."""
    sent = []

    async def send(*arguments: Any) -> None:
        sent.append(arguments)

    request, connection = object(), object()
    monkeypatch.setattr(aiohttp.ClientRequest, "send", send)
    monkeypatch.setattr(instrumentation._patches, "_patches", {})
    with instrument("http://gw.test/gateway"), mlflow.start_span("agent"):
        for _ in range(2):
            await aiohttp.ClientRequest.send(request, connection)
    assert sent == [(request, connection)] * 2
    (warning,) = warnings_in(caplog)
    assert f"aiohttp {aiohttp.__version__}" in warning


async def test_many_requests_at_once_each_name_their_own_span(server: HttpServer):
    """50 tasks share a session: each request has its own task's active span as parent."""
    expected = {}
    async with aiohttp.ClientSession() as session:

        async def ask(number: int) -> None:
            url = f"{server.gateway}/{number}"
            with mlflow.start_span(f"agent {number}") as span:
                async with session.get(url) as response:
                    await response.read()
                expected[url] = [named_by(span)]

        with instrument(server.gateway):
            await asyncio.gather(*map(ask, range(50)))
    assert len(expected) == 50
    assert dict(zip([url for url, _ in server.requests], server.sent(), strict=True)) == expected
