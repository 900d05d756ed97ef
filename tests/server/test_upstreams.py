"""upstreams.py: a gateway that sends requests to other gateways and to providers."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import httpx
import httpx2
import mlflow
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from agent_gateway_client import trace_headers
from agent_gateway_client.server import GatewayTracingMiddleware, gateway_attempt, gateway_call, upstreams
from agent_gateway_client.server.call import MAX_ATTEMPTS
from agent_gateway_client.w3c import TraceContext
from tests.support.asgi import Client, Mirrors, answering
from tests.support.http_server import HttpServer
from tests.support.middleware import post, starlette_app
from tests.support.server import PARENT, SPAN_ID, TRACE_ID, TRACEPARENT, ids_of
from tests.support.wire_samples import SAMPLES

pytestmark = pytest.mark.usefixtures("undone")

Serve = Callable[[], Any]


@pytest.fixture
def undone() -> Iterator[None]:
    """Undo what a gateway installs for the life of its process."""
    yield
    upstreams._instrument_once().uninstrument()
    upstreams._instrument_once.cache_clear()


@pytest.fixture
def upstream() -> Iterator[HttpServer]:
    """One server with two names: the gateway behind this one, and a provider."""
    with HttpServer() as server:
        yield server


def gateway(mirrors: Mirrors, upstream: HttpServer, serve: Serve, **options: Any) -> Any:
    """Return a gateway that does ``serve()`` for each call and answers with a chat completion."""

    async def answer(request: Any) -> JSONResponse:
        made = serve()
        if made is not None:
            await made
        return JSONResponse({"model": "gpt-4o-mini", "choices": [], "usage": {"prompt_tokens": 1}})

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])
    return GatewayTracingMiddleware(app, mirrors.exporter, **{"upstream_gateways": [upstream.gateway], **options})


def named_by(span: Any, **other: Any) -> str:
    """Return the ``traceparent`` of a mirror span."""
    return PARENT._replace(span_id=span.context.span_id, **other).traceparent


def attempts_in(mirrors: Mirrors) -> list[Any]:
    return [span for span in mirrors.spans if span.name.startswith("provider")]


async def send(url: str, **options: Any) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.post(url, **options)


async def send_with_httpx2(url: str) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        await client.post(url)


async def send_with_aiohttp(url: str) -> None:
    async with aiohttp.ClientSession(trust_env=False) as session, session.post(url) as response:
        await response.read()


async def send_in_thread(url: str) -> None:
    await asyncio.to_thread(httpx.post, url, trust_env=False)


async def send_by_hand(url: str) -> None:
    await asyncio.to_thread(_without_any_client_we_know, url, trace_headers(url))


def _without_any_client_we_know(url: str, headers: dict[str, str]) -> None:
    import requests

    requests.post(url, headers=headers, timeout=60)


SENDERS: dict[str, Callable[[str], Any]] = {
    "httpx": send,
    "httpx2": send_with_httpx2,
    "aiohttp": send_with_aiohttp,
    "httpx in a thread": send_in_thread,
    "trace_headers()": send_by_hand,
}


@pytest.mark.parametrize("sender", SENDERS)
async def test_the_attempt_is_the_parent(sender: str, mirrors: Mirrors, upstream: HttpServer):
    """A configured gateway gets the caller's trace with the attempt as parent; other hosts get no header."""

    async def serve() -> None:
        with gateway_attempt("litellm", "chat"):
            await SENDERS[sender](upstream.gateway)
            await SENDERS[sender](upstream.other)

    caller = TraceContext(TRACE_ID, SPAN_ID, 3, "a=1,b=2")
    app = gateway(mirrors, upstream, serve)
    await post(app, "/v1/chat/completions", caller.to_headers())
    (attempt,) = attempts_in(mirrors)
    assert upstream.sent() == [[named_by(attempt, flags=3)], []]
    assert upstream.sent("tracestate") == [["a=1,b=2"], []]
    assert upstream.sent("baggage") == [[], []]


async def test_the_environment_names_the_gateways(
    mirrors: Mirrors, upstream: HttpServer, monkeypatch: pytest.MonkeyPatch
):
    """Without an argument AGENT_GATEWAY_URLS applies, as for clients; an empty argument turns it off."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", f"http://another, {upstream.gateway}")
    for named in (None, []):
        await post(gateway(mirrors, upstream, lambda: send(upstream.gateway), upstream_gateways=named), "/v1/responses")
    (attempt, _) = attempts_in(mirrors)
    assert upstream.sent() == [[named_by(attempt)], []]


async def test_an_attempt_that_nobody_began(mirrors: Mirrors, upstream: HttpServer):
    """A request to another gateway is an attempt. Its facts come from the response."""

    async def serve() -> None:
        await send(upstream.gateway)
        await send(upstream.gateway)

    await post(gateway(mirrors, upstream, serve, provider="litellm"), "/v1/chat/completions")
    call, attempt = mirrors.spans
    assert attempt.name == "provider/litellm/gpt-4o-mini"
    assert ids_of(attempt)[1] == ids_of(call)[0]
    assert call.start_time <= attempt.start_time <= attempt.end_time <= call.end_time
    assert upstream.sent() == [[named_by(attempt)]] * 2


async def test_one_attempt_after_another(mirrors: Mirrors, upstream: HttpServer):
    """A request after a failed attempt has the next attempt as parent."""

    async def serve() -> None:
        for model in "ab":
            attempt = gateway_attempt("litellm", model)
            await send(upstream.gateway)
            attempt.end("503" if model == "a" else None)
        await send(upstream.gateway)

    await post(gateway(mirrors, upstream, serve), "/v1/chat/completions")
    attempts = attempts_in(mirrors)
    assert [attempt.name for attempt in attempts] == [
        "provider/litellm/a",
        "provider/litellm/b",
        "provider/gpt-4o-mini",
    ]
    assert upstream.sent() == [[named_by(attempt)] for attempt in attempts]


async def test_attempts_side_by_side(mirrors: Mirrors, upstream: HttpServer):
    """Each of several concurrent attempts is the parent of its own request."""
    begun = asyncio.Barrier(3) if hasattr(asyncio, "Barrier") else None

    async def attempt(model: str) -> None:
        with gateway_attempt("litellm", model):
            if begun is not None:
                await begun.wait()
            await send(f"{upstream.gateway}/{model}")

    async def serve() -> None:
        await asyncio.gather(*map(attempt, "abc"))

    await post(gateway(mirrors, upstream, serve), "/v1/chat/completions")
    expected = {f"{upstream.gateway}/{span.name[-1]}": named_by(span) for span in attempts_in(mirrors)}
    assert len(expected) == 3
    assert {url: dict(headers)["traceparent"] for url, headers in upstream.requests} == expected


async def test_a_gateway_that_hands_its_callers_headers_on(mirrors: Mirrors, upstream: HttpServer):
    """A configured gateway gets the attempt instead of the caller's span. The gateway's own header stays."""
    own = PARENT._replace(trace_id=7).traceparent

    async def serve() -> None:
        await send(upstream.gateway, headers={"TraceParent": TRACEPARENT, "tracestate": "a=1"})
        await send(upstream.gateway, headers={"traceparent": own})

    caller = PARENT._replace(tracestate="a=1")
    await post(gateway(mirrors, upstream, serve), "/v1/chat/completions", caller.to_headers())
    (attempt,) = attempts_in(mirrors)
    assert upstream.sent() == [[named_by(attempt)], [own]]
    assert upstream.sent("tracestate") == [["a=1"], []]


UNTRACED: dict[str, dict[str, str]] = {
    "no traceparent": {},
    "unsampled": {"traceparent": PARENT._replace(flags=0).traceparent},
    "invalid": {"traceparent": "00-0-0-01"},
}


@pytest.mark.parametrize("headers", UNTRACED.values(), ids=UNTRACED)
async def test_only_a_callers_trace_is_passed_on(headers: dict[str, str], mirrors: Mirrors, upstream: HttpServer):
    """If the caller is not tracing nothing is sent, not even the gateway's own trace."""

    async def serve() -> None:
        with mlflow.start_span("the gateway's own"):
            await send(upstream.gateway)

    await post(gateway(mirrors, upstream, serve), "/v1/chat/completions", headers)
    assert upstream.sent() == [[]]
    assert mirrors.spans == []


async def test_the_gateways_own_span_is_not_the_parent(mirrors: Mirrors, upstream: HttpServer):
    """A span of the gateway's own trace, which the caller cannot see, does not become the parent."""

    async def serve() -> None:
        with mlflow.start_span("the gateway's own"):
            await send(upstream.gateway)

    await post(gateway(mirrors, upstream, serve), "/v1/chat/completions")
    (attempt,) = attempts_in(mirrors)
    assert upstream.sent() == [[named_by(attempt)]]


async def test_after_the_call(mirrors: Mirrors, upstream: HttpServer):
    """Requests sent after the call is over and mirrored do not have its spans as parent."""
    over = asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def later() -> None:
        await over.wait()
        await send(upstream.gateway)

    def serve() -> None:
        left.append(asyncio.ensure_future(later()))

    await post(gateway(mirrors, upstream, serve), "/v1/chat/completions")
    over.set()
    await left[0]
    assert upstream.sent() == [[]]
    assert len(mirrors.spans) == 2


async def test_more_attempts_than_are_kept(mirrors: Mirrors, upstream: HttpServer):
    """An attempt that is not in the mirror is not used as parent: the call's span is."""

    async def serve() -> None:
        for _ in range(MAX_ATTEMPTS):
            gateway_attempt("litellm", "chat").end("503")
        await send(upstream.gateway)

    await post(gateway(mirrors, upstream, serve), "/v1/chat/completions")
    assert upstream.sent() == [[named_by(mirrors.spans[0])]]


async def test_a_bad_name_fails_the_start(mirrors: Mirrors, upstream: HttpServer, monkeypatch: pytest.MonkeyPatch):
    """A value that is not a URL raises an error when the application starts, not at the first request."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", "litellm:4000")
    for options in ({"upstream_gateways": ["litellm:4000"]}, {"upstream_gateways": None}):
        app = GatewayTracingMiddleware(answering(), mirrors.exporter, **options)
        client = Client()
        await app({"type": "lifespan", "state": {}}, client.receive, client.send)
        (failed,) = client.sent
        assert failed["type"] == "lifespan.startup.failed"
        assert "litellm:4000" in failed["message"]
        assert (await post(gateway(mirrors, upstream, lambda: None, **options), "/v1/responses")).status_code == 200


@pytest.mark.parametrize("with_attempt", [True, False])
def test_no_asgi(with_attempt: bool, mirrors: Mirrors, upstream: HttpServer, monkeypatch: pytest.MonkeyPatch):
    """gateway_call() sends the context to the gateways of the environment; each thread has its own call's."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", upstream.gateway)
    callers = [PARENT._replace(span_id=number) for number in range(1, 9)]

    def serve(caller: TraceContext) -> None:
        with gateway_call(caller.to_headers(), endpoint="chat", exporter=mirrors.exporter) as call:
            attempt = call.attempt("litellm", "chat") if with_attempt else None
            httpx.post(f"{upstream.gateway}/{caller.span_id}", trust_env=False)
            httpx.post(f"{upstream.other}/{caller.span_id}", trust_env=False)
            if attempt is not None:
                attempt.end()
        httpx.post(f"{upstream.gateway}/{caller.span_id}", trust_env=False)

    threads = [threading.Thread(target=serve, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parents = {ids_of(span)[0]: ids_of(span)[1] for span in mirrors.spans}
    sent = [(url, dict(headers).get("traceparent")) for url, headers in upstream.requests]
    passed_on = {url: traceparent for url, traceparent in sent if traceparent is not None}
    assert len(sent) == 3 * len(callers)
    for caller in callers:
        traceparent = passed_on.pop(f"{upstream.gateway}/{caller.span_id}")
        assert parents[parents[int(traceparent[36:52], 16)]] == caller.span_id
    assert passed_on == {}


def test_no_asgi_and_a_bad_environment(
    mirrors: Mirrors, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Calls are served and mirrored, and one warning describes the error."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", "litellm:4000")
    for _ in range(2):
        with gateway_call({"traceparent": TRACEPARENT}, exporter=mirrors.exporter):
            pass
    assert len(mirrors.spans) == 2
    (message,) = logged.messages
    assert "AGENT_GATEWAY_URLS" in message


async def test_nothing_is_reached_where_no_gateway_is_named(mirrors: Mirrors):
    """Without upstream gateways no HTTP library is patched."""
    before = httpx.AsyncClient._send_single_request
    await post(GatewayTracingMiddleware(starlette_app(SAMPLES["chat"]), mirrors.exporter), "/v1/chat/completions")
    assert len(mirrors.spans) == 2
    assert httpx.AsyncClient._send_single_request is before


def test_a_call_within_a_call(mirrors: Mirrors, upstream: HttpServer, monkeypatch: pytest.MonkeyPatch):
    """If a gateway serves a call of its own inside another, each request has its own call as parent."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", upstream.gateway)
    with gateway_call({"traceparent": TRACEPARENT}, endpoint="outer", exporter=mirrors.exporter) as outer:
        outer.attempt("litellm", "outer")
        inner = PARENT._replace(trace_id=7)
        with gateway_call(inner.to_headers(), endpoint="inner", exporter=mirrors.exporter) as call:
            call.attempt("litellm", "inner")
            httpx.post(upstream.gateway, trust_env=False)
        httpx.post(upstream.gateway, trust_env=False)
    spans = {span.name: span for span in mirrors.spans}
    assert upstream.sent() == [
        [named_by(spans["provider/litellm/inner"], trace_id=7)],
        [named_by(spans["provider/litellm/outer"])],
    ]
