"""instrument(): each HTTP stack, to a gateway and elsewhere, redirected, retried, with a header, and undone."""

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import mlflow
import pytest

from agent_gateway_client import instrument, trace_headers, uninstrument
from tests.support.client import (
    STACKS,
    TRACEPARENT,
    BrokenSpan,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
    remote_span,
    value_of,
)
from tests.support.http_server import HttpServer, via

Get = Callable[..., Awaitable[None]]


def httpx_get(stack: Any, kind: str) -> Get:
    async def get(url: str, attempts: int = 1, **headers: str) -> None:
        client = getattr(stack, kind)(trust_env=False, follow_redirects=True)
        for _ in range(attempts):
            await value_of(client.get(url, headers=headers))
        await value_of(client.close() if kind == "Client" else client.aclose())

    return get


async def aiohttp_get(url: str, attempts: int = 1, **headers: str) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        for _ in range(attempts):
            async with session.get(url, headers=headers) as response:
                await response.read()


async def urllib3_get(url: str, attempts: int = 1, **headers: str) -> None:
    import urllib3

    retry = urllib3.Retry(attempts + 5, status=attempts, status_forcelist=[503], backoff_factor=0)
    with urllib3.PoolManager(retries=retry) as pool:
        pool.request("GET", failing(url, attempts), headers=headers or None)


async def requests_get(url: str, attempts: int = 1, **headers: str) -> None:
    import requests

    with requests.Session() as session:
        session.trust_env = False
        retry = requests.adapters.Retry(attempts, status_forcelist=[503], backoff_factor=0)
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
        session.get(failing(url, attempts), headers=headers)


async def websockets_get(url: str, attempts: int = 1, **headers: str) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus

    for _ in range(attempts):
        with pytest.raises(InvalidStatus, match="200"):
            await connect(url.replace("http", "ws"), additional_headers=headers, proxy=None)


async def websockets_sync_get(url: str, attempts: int = 1, **headers: str) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    for _ in range(attempts):
        with pytest.raises(InvalidStatus, match="200"):
            connect(url.replace("http", "ws"), additional_headers=headers, proxy=None)


async def botocore_get(url: str, attempts: int = 1, **headers: str) -> None:
    from botocore.awsrequest import AWSRequest
    from botocore.httpsession import URLLib3Session

    # The headers that a boto3 client sends.
    session = URLLib3Session()
    for _ in range(attempts):
        session.send(AWSRequest("GET", url, headers).prepare())
    session.close()


def failing(url: str, attempts: int) -> str:
    """Return a URL for which all attempts but the last fail."""
    return url if attempts == 1 else f"{url}?fail={attempts - 1}"


CLIENTS: dict[str, Get] = {
    f"{stack.__name__}.{kind}": httpx_get(stack, kind) for stack in STACKS for kind in ("Client", "AsyncClient")
}
CLIENTS |= {
    name: get
    for name, get in {
        "aiohttp": aiohttp_get,
        "urllib3": urllib3_get,
        "requests": requests_get,
        "botocore": botocore_get,
        "websockets": websockets_get,
        "websockets.sync": websockets_sync_get,
    }.items()
    if find_spec(name.partition(".")[0])
}
# The sync client of websockets follows them from version 17 on.
FOLLOWS = find_spec("websockets") and hasattr(import_module("websockets.sync.client"), "reconnect")
NO_REDIRECTS = ("botocore",) if FOLLOWS else ("botocore", "websockets.sync")
"""Stacks that do not follow redirects, as a test checks."""

each_client = pytest.mark.parametrize("client", CLIENTS)
each_redirecting = pytest.mark.parametrize("client", [name for name in CLIENTS if name not in NO_REDIRECTS])


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server
    uninstrument()


@each_client
async def test_gateways_only_and_undone(client: str, server: HttpServer):
    """The active span is sent to a gateway; another host or path gets nothing, nor does the gateway after the undo."""
    get = CLIENTS[client]
    handle = instrument(server.gateway)
    with mlflow.start_span("agent") as agent:
        await get(server.gateway)
        await get(server.other)
        await get(server.gateway + "2")
        handle.uninstrument()
        await get(server.gateway)
    assert server.sent() == [[named_by(agent)], [], [], []]
    with instrument(server.gateway), remote_span() as value:
        await get(server.gateway)
    assert (server.sent()[-1], server.sent("tracestate")[-1]) == ([value], ["vendor=1"])


@each_client
@pytest.mark.parametrize("name", ["traceparent", "TraceParent"])
async def test_an_existing_header_stays(client: str, name: str, server: HttpServer):
    """A caller's own traceparent, in any case, is the only one."""
    with instrument(server.gateway), mlflow.start_span("agent"):
        await CLIENTS[client](server.gateway, **{name: TRACEPARENT})
        await CLIENTS[client](server.other, **{name: TRACEPARENT})
    assert server.sent() == [[TRACEPARENT]] * 2


def multi_valued() -> Iterator[Any]:
    """Headers of classes that keep several values of a name."""
    for module, name in (("urllib3", "HTTPHeaderDict"), ("multidict", "CIMultiDict")):
        if find_spec(module):
            headers = getattr(import_module(module), name)()
            headers.add("x-list", "a")
            headers.add("x-list", "b")
            yield pytest.param(headers, id=name)


@pytest.mark.parametrize("headers", list(multi_valued()))
def test_several_values_of_a_header_stay(headers: Any, server: HttpServer):
    """urllib3 accepts any mapping, and sends all of its items."""
    import urllib3

    with instrument(server.gateway), mlflow.start_span("agent") as agent, urllib3.PoolManager() as pool:
        pool.request("GET", server.gateway, headers=headers)
    assert server.sent() == [[named_by(agent)]]
    assert ", ".join(server.sent("x-list")[0]) == "a, b"


@each_client
async def test_each_attempt_is_named_once(client: str, server: HttpServer):
    """Each retry has the header once."""
    with instrument(server.gateway), mlflow.start_span("agent") as agent:
        await CLIENTS[client](server.gateway, attempts=3)
    assert server.sent() == [[named_by(agent)]] * 3


@each_redirecting
async def test_each_hop_of_a_redirect(client: str, server: HttpServer):
    """Exactly the hops to gateways have the header."""
    with instrument(server.gateway), mlflow.start_span("agent") as agent:
        await CLIENTS[client](via(server.gateway, server.gateway + "/2", server.other, server.gateway + "/3"))
    ours = [named_by(agent)]
    assert server.sent() == [ours, ours, [], ours]


@pytest.mark.parametrize("client", [name for name in CLIENTS if name in NO_REDIRECTS])
async def test_a_redirect_that_is_not_followed(client: str, server: HttpServer):
    """These stacks send one request, and leave redirects to their caller."""
    with instrument(server.gateway), mlflow.start_span("agent") as agent, suppress(AssertionError):
        await CLIENTS[client](via(server.gateway, server.other))
    assert server.sent() == [[named_by(agent)]]


@each_redirecting
async def test_a_header_of_this_process_leaves_no_gateway(client: str, server: HttpServer):
    """A traceparent that the caller set for a span of this process is removed if a redirect leaves the gateway."""
    get = CLIENTS[client]
    with instrument(server.gateway), mlflow.start_span("agent") as agent:
        mine = named_by(agent)
        await get(via(server.gateway, server.other, server.gateway + "/2"), traceparent=mine)
        await get(server.other, traceparent=mine)
        await get(via(server.gateway, server.other), traceparent=TRACEPARENT)
    assert server.sent() == [[mine], [], [mine], [mine], [TRACEPARENT], [TRACEPARENT]]


def test_a_prepared_request_of_requests_leaves_the_gateway(server: HttpServer):
    """The caller's own request and a foreign traceparent are not changed, nor a request after the instrumentation."""
    requests = pytest.importorskip("requests")
    detached = mlflow.start_span_no_context("detached")
    mine = {"Traceparent": named_by(detached), "Tracestate": "vendor=1"}
    away = via(server.gateway, server.other)
    with requests.Session() as session:
        session.trust_env = False
        prepared = session.prepare_request(requests.Request("POST", away, headers=mine, data="body"))
        with instrument(server.gateway):
            session.send(prepared)
            session.get(away, headers={"traceparent": TRACEPARENT})
            session.get(via(server.other, server.other + "/2"), headers=mine)
        session.get(away, headers=mine)
    detached.end()
    assert {name: prepared.headers[name] for name in mine} == mine
    own = [named_by(detached)]
    assert server.sent() == [own, [], [TRACEPARENT], [TRACEPARENT], own, own, own, own]
    assert server.sent("tracestate")[:2] == [["vendor=1"], []]


@each_client
@pytest.mark.usefixtures("guards_hold")
async def test_without_a_span_or_with_a_broken_one(client: str, server: HttpServer):
    """Without a span, or if reading it fails, the request is sent unchanged."""
    from opentelemetry import trace

    await CLIENTS[client](server.gateway)
    with instrument(server.gateway):
        await CLIENTS[client](server.gateway)
        with trace.use_span(BrokenSpan()):
            await CLIENTS[client](server.gateway)

    def names(headers: list[tuple[str, str]]) -> list[str]:
        return sorted(name.lower() for name, _ in headers)

    plain, without, broken = (names(headers) for _, headers in server.requests)
    assert plain == without == broken


@pytest.mark.parametrize("is_pool_managers", [True, False])
def test_the_callers_own_headers_are_not_changed(is_pool_managers: bool, server: HttpServer):
    """A caller's dictionary of any type, passed to a request or to the pool, is not modified."""
    urllib3 = pytest.importorskip("urllib3")
    given = urllib3.HTTPHeaderDict({"x-one": "1"})
    given.add("x-one", "2")
    before = list(given.iteritems())
    with instrument(server.gateway), mlflow.start_span("agent") as agent:
        if is_pool_managers:
            urllib3.PoolManager(headers=given).request("GET", server.gateway)
        else:
            urllib3.PoolManager().request("GET", server.gateway, headers=given)
    assert list(given.iteritems()) == before
    assert server.sent() == [[named_by(agent)]]
    assert ", ".join(server.sent("x-one")[0]) == "1, 2"


def test_urllib3_with_other_parameters(server: HttpServer, monkeypatch: pytest.MonkeyPatch):
    """In another version, or if other code has wrapped it, the method may have other parameters."""
    urllib3 = pytest.importorskip("urllib3")
    original, given = urllib3.HTTPConnectionPool._make_request, []

    def _make_request(pool: Any, conn: Any, method: str, url: str, timeout: Any = None, **others: Any) -> Any:
        given.append(others.pop("headers", "none"))
        headers = None if given[-1] == "none" else given[-1]
        return original(pool, conn, method, url, timeout=timeout, headers=headers, **others)

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "_make_request", _make_request)
    with instrument(server.gateway), mlflow.start_span("agent") as agent, urllib3.PoolManager() as pool:
        pool.request("GET", server.gateway, headers={"x-one": "1"})
        pool.request("GET", server.other, headers={"x-one": "1"})
        own = pool.connection_from_url(server.other)
        own._make_request(own._get_conn(), method="GET", url="/")
    assert server.sent() == [[named_by(agent)], [], []]
    assert given == [{"x-one": "1", "traceparent": named_by(agent)}, {"x-one": "1"}, "none"]


def test_a_proxy_is_not_the_gateway(server: HttpServer):
    """With a proxy, the request's own URL decides."""
    urllib3 = pytest.importorskip("urllib3")
    with urllib3.ProxyManager(server.gateway.removesuffix("/gateway")) as proxy:
        with instrument("http://gw.test/v1"), mlflow.start_span("agent") as agent:
            proxy.request("GET", "http://gw.test/v1/models")
            proxy.request("GET", "http://other.test/v1/models")
        with instrument(server.gateway.removesuffix("/gateway")), mlflow.start_span("agent"):
            proxy.request("GET", "http://other.test/v1/models")
    assert server.sent() == [[named_by(agent)], [], []]


def boto3_client(service: str, url: str, attempts: int = 1) -> Any:
    """Return a boto3 client, like ``boto3.client(service, endpoint_url=url)``."""
    pytest.importorskip("botocore")
    session = import_module("botocore.session").Session()
    session.set_credentials("id", "secret")
    retries = {"total_max_attempts": attempts, "mode": "standard"}
    config = import_module("botocore.config").Config(retries=retries, proxies={})
    return session.create_client(service, region_name="us-east-1", endpoint_url=url, config=config)


ASK_BEDROCK: dict[str, Any] = {"modelId": "m", "messages": [{"role": "user", "content": [{"text": "hi"}]}]}


def test_each_attempt_of_boto3_carries_its_own_span(server: HttpServer, monkeypatch: pytest.MonkeyPatch):
    """boto3 signs and sends each of its retries anew; each has the header once, and only to the gateway."""
    client = boto3_client("bedrock-runtime", f"{server.gateway}/fail/2", attempts=3)
    other = boto3_client("bedrock-runtime", f"{server.other}2/fail/2", attempts=3)
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with instrument(server.gateway), mlflow.start_span("agent") as agent:
        client.converse(**ASK_BEDROCK)
        other.converse(**ASK_BEDROCK)
    assert server.sent() == [[named_by(agent)]] * 3 + [[]] * 3


def test_boto3_follows_no_redirect_to_another_host(server: HttpServer):
    """Bedrock's client raises at a redirect, and S3's requests the bucket's region from the same endpoint."""
    error = pytest.importorskip("botocore.exceptions").ClientError
    away = server.gateway + "/away"
    with instrument(server.gateway), mlflow.start_span("agent") as agent:
        with pytest.raises(error, match="307"):
            boto3_client("bedrock-runtime", away).converse(**ASK_BEDROCK)
        with pytest.raises(error):
            boto3_client("s3", away).get_object(Bucket="bucket", Key="key")
    assert server.requests
    assert all(url.startswith(server.gateway) for url, _ in server.requests)
    assert server.sent() == [[named_by(agent)]] * len(server.requests)


def test_the_signature_of_boto3_stays_valid(server: HttpServer):
    """The header is added after signing and is not a signed header: the server computes the same signature."""
    client = boto3_client("bedrock-runtime", server.gateway)
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    with instrument(server.gateway), mlflow.start_span("agent") as agent:
        client.converse(**ASK_BEDROCK)
    assert server.sent() == [[named_by(agent)]]
    ((url, lines),) = server.requests
    received = {name.lower(): value for name, value in lines}
    signed = received["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert "traceparent" not in signed
    request = AWSRequest("POST", url, {name: received[name] for name in signed}, server.bodies[0])
    request.context["timestamp"] = received["x-amz-date"]
    auth = SigV4Auth(Credentials("id", "secret"), "bedrock", "us-east-1")
    canonical = auth.canonical_request(request)
    assert received["authorization"].endswith(auth.signature(auth.string_to_sign(request, canonical), request))


async def test_openais_sockets_are_reached(server: HttpServer):
    """The SDK's client.realtime.connect(), sync and async, opens its socket with the active span's header."""
    openai = pytest.importorskip("openai")
    pytest.importorskip("websockets")
    from websockets.exceptions import InvalidStatus

    # From base_url alone, older versions of the SDK derive wss://.
    given = {
        "api_key": "key",
        "base_url": server.gateway,
        "websocket_base_url": server.gateway.replace("http", "ws", 1),
    }
    with instrument(server.gateway), mlflow.start_span("agent") as agent:
        with pytest.raises(InvalidStatus), openai.OpenAI(**given).realtime.connect(model="m"):
            pass
        with pytest.raises(InvalidStatus):
            async with openai.AsyncOpenAI(**given).realtime.connect(model="m"):
                pass
    assert server.sent() == [[named_by(agent)]] * 2


@pytest.mark.usefixtures("guards_hold")
def test_trace_headers_of_a_given_span():
    """span= accepts an inactive span of MLflow or OpenTelemetry; a no-op span gives no headers."""
    url = "http://gw.test/v1"
    detached = mlflow.start_span_no_context("detached")
    with mlflow.start_span("agent"):
        assert trace_headers(url, [url], span=detached) == {"traceparent": named_by(detached)}
        with remote_span() as value:
            from opentelemetry import trace

            remote = trace.get_current_span()
        assert trace_headers(url, [url], span=remote) == {"traceparent": value, "tracestate": "vendor=1"}
        assert trace_headers(url, [url], span=mlflow.entities.span.NoOpSpan()) == {}
        assert trace_headers("http://other.test", [url], span=detached) == {}
        with pytest.raises(ValueError, match="span must be a span of MLflow or OpenTelemetry, not str"):
            trace_headers(url, [url], span="agent")
    detached.end()


@pytest.mark.parametrize("client", [name for name in ("requests", "urllib3") if find_spec(name)])
async def test_opentelemetrys_own_header_makes_room(client: str, server: HttpServer):
    """A header that OpenTelemetry's instrumentation of requests or urllib3 has set is replaced by MLflow's span."""
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider().get_tracer(f"opentelemetry.instrumentation.{client}")
    with (
        instrument(server.gateway),
        mlflow.start_span("agent") as agent,
        tracer.start_as_current_span("GET") as span,
    ):
        own = named_by_otel(span)
        await CLIENTS[client](server.gateway, Traceparent=own)
        await CLIENTS[client](server.other, Traceparent=own)
    assert server.sent() == [[named_by(agent)], [own]]


def test_threads_do_not_mix(server: HttpServer):
    """Requests of many threads over one urllib3 pool each have their own thread's span as parent."""
    urllib3 = pytest.importorskip("urllib3")
    expected: dict[str, list[str]] = {}

    def work(pool: Any, number: int) -> None:
        with mlflow.start_span("thread") as span:
            url = f"{server.gateway}/{number}"
            expected[url] = [named_by(span)]
            pool.request("GET", url)

    with instrument(server.gateway), urllib3.PoolManager(maxsize=4) as pool:
        threads = [threading.Thread(target=work, args=(pool, number)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert dict(zip((url for url, _ in server.requests), server.sent(), strict=True)) == expected
