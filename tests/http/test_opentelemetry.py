"""instrument() with OpenTelemetry's instrumentation of httpx, httpx2 and aiohttp: one trace, one header."""

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import mlflow
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent_gateway_client import instrument, trace_headers, uninstrument, unwrap, wrap_httpx, wrap_openai
from tests.support.client import (
    STACKS,
    TRACEPARENT,
    isolated,  # noqa: F401
    named_by,
    restart_mlflow,
    value_of,
    warnings_in,
)
from tests.support.http_server import HttpServer, via

REASON = "OpenTelemetry's instrumentations of HTTP clients are not in this environment's constraints file"
otel_httpx = pytest.importorskip("opentelemetry.instrumentation.httpx", reason=REASON)

Get = Callable[..., Awaitable[Any]]


def httpx_get(stack: Any, kind: str) -> Get:
    async def get(url: str, **headers: str) -> None:
        client = getattr(stack, kind)(trust_env=False, follow_redirects=True)
        await value_of(client.get(url, headers=headers))
        await value_of(client.close() if kind == "Client" else client.aclose())

    return get


async def aiohttp_get(url: str, **headers: str) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        await response.read()


CLIENTS: dict[str, Get] = {
    f"{stack.__name__}.{kind}": httpx_get(stack, kind) for stack in STACKS for kind in ("Client", "AsyncClient")
}
INSTRUMENTORS = {
    "httpx": otel_httpx.HTTPXClientInstrumentor,
    "httpx2": getattr(otel_httpx, "HTTPX2ClientInstrumentor", None),
}
if find_spec("aiohttp"):
    try:
        from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
    except ModuleNotFoundError:
        from tests.support.aiohttp_instrumentation import AioHttpClientInstrumentor
    CLIENTS["aiohttp"] = aiohttp_get
    INSTRUMENTORS["aiohttp"] = AioHttpClientInstrumentor

CLIENTS = {name: get for name, get in CLIENTS.items() if INSTRUMENTORS[name.partition(".")[0]]}

each_client = pytest.mark.parametrize("client", CLIENTS)
each_order = pytest.mark.parametrize("first", ["instrument", "opentelemetry"])


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server


class Otel:
    """OpenTelemetry in this process: its spans, and its instrumentations, as :meth:`both` turns them on."""

    def __init__(self, stack: ExitStack) -> None:
        self.provider = TracerProvider()
        self._stack = stack
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def both(self, gateway: str, first: str = "instrument") -> None:
        """Turn on instrument() and all instrumentations, in this order or the other."""
        if first == "instrument":
            instrument(gateway)
        self.instrumentations()
        if first != "instrument":
            instrument(gateway)

    def instrumentations(self) -> None:
        """Turn on all instrumentations."""
        for make in filter(None, INSTRUMENTORS.values()):
            make().instrument(tracer_provider=self.provider)
            self._stack.callback(make().uninstrument)

    def span(self, name: str) -> Any:
        return self.provider.get_tracer("tests").start_as_current_span(name)

    @property
    def requests(self) -> list[Any]:
        """The spans of the instrumentations."""
        return [span for span in self._exporter.get_finished_spans() if span.kind == trace.SpanKind.CLIENT]


@pytest.fixture
def otel() -> Iterator[Otel]:
    with ExitStack() as stack:
        yield Otel(stack)
        uninstrument()


def named(span: Any) -> str:
    """Return the start of the traceparent of an OpenTelemetry span, without the flags."""
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"


def one_each(server: HttpServer) -> list[str]:
    """Return the only traceparent of each request."""
    sent = server.sent()
    assert [len(values) for values in sent] == [1] * len(sent)
    return [values[0] for values in sent]


@each_client
@each_order
async def test_the_mlflow_span_is_named(client: str, first: str, server: HttpServer, otel: Otel):
    """An active MLflow span is the parent, whatever was turned on first, and whatever else is active."""
    otel.both(server.gateway, first)
    with mlflow.start_span("agent") as agent:
        await CLIENTS[client](server.gateway)
        with otel.span("web request"):
            await CLIENTS[client](server.gateway)
            with mlflow.start_span("step") as step:
                await CLIENTS[client](server.gateway)
    assert one_each(server) == [named_by(agent), named_by(agent), named_by(step)]
    # aiohttp's is made before the request is; it stays in OpenTelemetry's own trace.
    assert len(otel.requests) == (3 if client == "aiohttp" else 0)


@each_client
@each_order
async def test_where_only_opentelemetry_has_a_span_its_instrumentation_goes_on(
    client: str, first: str, server: HttpServer, otel: Otel
):
    """Without an MLflow span the parent is the instrumentation's own span, in the trace of the surrounding span."""
    otel.both(server.gateway, first)
    with otel.span("web request") as outer:
        await CLIENTS[client](server.gateway)
    (request,) = otel.requests
    (sent,) = one_each(server)
    assert sent.startswith(named(request))
    assert request.parent.span_id == outer.get_span_context().span_id


@each_client
async def test_other_hosts_have_what_opentelemetry_sends(client: str, server: HttpServer, otel: Otel):
    """Other hosts get the instrumentation's header as usual, never an MLflow span's, also in redirects."""
    otel.both(server.gateway)
    with mlflow.start_span("agent") as agent:
        await CLIENTS[client](server.other)
        await CLIENTS[client](via(server.gateway, server.other))
    to_other, to_gateway, redirected = one_each(server)
    assert to_gateway == named_by(agent)
    own = [named(request) for request in otel.requests]
    assert [to_other[:-3], redirected[:-3]] == own
    assert agent.trace_id.removeprefix("tr-") not in "".join(own)


@pytest.mark.parametrize("client", [name for name in CLIENTS if name != "aiohttp"])
async def test_a_header_of_the_users_stays(client: str, server: HttpServer, otel: Otel):
    """A traceparent that is already in the request is not overwritten, with or without an MLflow span."""
    otel.both(server.gateway)
    await CLIENTS[client](server.gateway, traceparent=TRACEPARENT)
    with mlflow.start_span("agent"):
        await CLIENTS[client](server.gateway, traceparent=TRACEPARENT)
    assert one_each(server) == [TRACEPARENT] * 2


@each_client
async def test_with_mlflows_spans_in_opentelemetrys_context(
    client: str, server: HttpServer, otel: Otel, monkeypatch: pytest.MonkeyPatch
):
    """With MLFLOW_TRACE_PROPAGATE_TO_OTEL_CONTEXT the parent is also MLflow's span: MLflow lacks the other one."""
    monkeypatch.setenv("MLFLOW_TRACE_PROPAGATE_TO_OTEL_CONTEXT", "true")
    restart_mlflow()
    otel.both(server.gateway)
    with mlflow.start_span("agent") as agent:
        assert trace.get_current_span().get_span_context().span_id == int(agent.span_id, 16)
        await CLIENTS[client](server.gateway)
    assert one_each(server) == [named_by(agent)]


@each_client
async def test_where_mlflows_spans_are_opentelemetrys(
    client: str, server: HttpServer, otel: Otel, monkeypatch: pytest.MonkeyPatch
):
    """If MLflow uses OpenTelemetry's provider, the instrumentation's span is in MLflow's trace, and is the parent."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", otel.provider)
    monkeypatch.setenv("MLFLOW_USE_DEFAULT_TRACER_PROVIDER", "false")
    restart_mlflow()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", otel.provider)
    otel.both(server.gateway)
    with mlflow.start_span("agent") as agent:
        await CLIENTS[client](server.gateway)
    (request,) = otel.requests
    (sent,) = one_each(server)
    assert sent.startswith(named(request))
    assert f"{request.parent.span_id:016x}" == agent.span_id
    assert f"tr-{request.context.trace_id:032x}" == agent.trace_id


def wrapped_client(stack: Any, kind: str, gateway: str) -> Any:
    return wrap_httpx(getattr(stack, kind)(trust_env=False, follow_redirects=True), [gateway])


@pytest.mark.parametrize("stack", [stack for stack in STACKS if INSTRUMENTORS[stack.__name__]])
@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
@pytest.mark.parametrize("first", ["wrap", "opentelemetry"])
async def test_a_wrapped_client_follows_the_same_rule(
    stack: Any, kind: str, first: str, server: HttpServer, otel: Otel
):
    """wrap_httpx() sends MLflow's span like instrument(); other hosts get OpenTelemetry's header as usual."""
    client = wrapped_client(stack, kind, server.gateway) if first == "wrap" else None
    otel.instrumentations()
    client = client or wrapped_client(stack, kind, server.gateway)
    with mlflow.start_span("agent") as agent, otel.span("web request"):
        await value_of(client.get(server.gateway))
        assert otel.requests == []
        await value_of(client.get(via(server.gateway, server.other)))
        unwrap(client)
        await value_of(client.get(server.gateway))
    await value_of(client.close() if kind == "Client" else client.aclose())
    sent = one_each(server)
    assert sent[:2] == [named_by(agent)] * 2
    assert [value[:-3] for value in sent[2:]] == [named(request) for request in otel.requests]


@pytest.mark.parametrize("stack", [stack for stack in STACKS if INSTRUMENTORS[stack.__name__]])
@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
async def test_a_wrapped_client_that_was_used_before(
    stack: Any, kind: str, server: HttpServer, otel: Otel, monkeypatch: pytest.MonkeyPatch
):
    """Its send method is replaced with the first request beside OpenTelemetry's instrumentation, until unwrap()."""
    client = wrapped_client(stack, kind, server.gateway)
    with mlflow.start_span("agent") as agent:
        with monkeypatch.context() as without:
            without.delitem(sys.modules, "opentelemetry.instrumentation.utils")
            await value_of(client.get(server.gateway))
            assert "_send_single_request" not in vars(client)
        otel.instrumentations()
        await value_of(client.get(server.gateway))
    unwrap(client)
    assert "_send_single_request" not in vars(client)
    await value_of(client.close() if kind == "Client" else client.aclose())
    assert one_each(server) == [named_by(agent)] * 2


async def test_an_openai_client_follows_the_same_rule(server: HttpServer, otel: Otel):
    """wrap_openai() sends MLflow's span, whether the SDK uses httpx or httpx2."""
    openai = pytest.importorskip("openai")
    otel.instrumentations()
    client = wrap_openai(openai.OpenAI(api_key="key", base_url=server.gateway, max_retries=0))
    with mlflow.start_span("agent") as agent:
        client.get("/models", cast_to=object)
    client.close()
    assert one_each(server) == [named_by(agent)]


@pytest.mark.parametrize("client", [name for name in CLIENTS if name != "aiohttp"])
async def test_trace_headers_are_not_overwritten(client: str, server: HttpServer, otel: Otel):
    """A header of trace_headers() is the one that arrives, until uninstrument() gives OpenTelemetry's precedence."""
    otel.instrumentations()
    with mlflow.start_span("agent") as agent:
        headers = trace_headers(server.gateway, [server.gateway])
        await CLIENTS[client](server.gateway, **headers)
        uninstrument()
        await CLIENTS[client](server.gateway, **headers)
    (request,) = otel.requests
    kept, overwritten = one_each(server)
    assert kept == named_by(agent)
    assert overwritten.startswith(named(request))


@pytest.mark.usefixtures("guards_hold")
@pytest.mark.parametrize("client", [name for name in CLIENTS if name.startswith("httpx.")])
async def test_an_opentelemetry_without_the_switch(
    client: str, server: HttpServer, otel: Otel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Without its context manager requests have OpenTelemetry's header; one warning has the version."""
    otel.both(server.gateway)
    monkeypatch.delattr("opentelemetry.instrumentation.utils.suppress_http_instrumentation")
    with mlflow.start_span("agent"):
        for _ in range(2):
            await CLIENTS[client](server.gateway)
    assert len(one_each(server)) == 2
    (warning,) = warnings_in(caplog)
    assert f"opentelemetry-instrumentation {metadata.version('opentelemetry-instrumentation')}" in warning
