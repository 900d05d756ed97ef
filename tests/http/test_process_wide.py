"""instrument(): every client of httpx and httpx2 in the process, and restoring everything."""

import asyncio
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import mlflow
import pytest
from opentelemetry import trace

from agent_gateway_client import instrument, trace_headers, uninstrument, wrap_httpx
from agent_gateway_client.active_span import ModelCall, model_call
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import Gateways
from agent_gateway_client.http import _process_wide as instrumentation
from agent_gateway_client.http._known import instrumented_gateways
from tests.support.client import (
    GATEWAY,
    OTHER,
    STACKS,
    TRACEPARENT,
    BrokenSpan,
    Wire,
    each_kind,
    each_stack,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
    otel_span,
    redirects,
    remote_span,
    value_of,
    warnings_in,
)

A, B = f"{GATEWAY}/a", f"{GATEWAY}/b"
SECOND = "https://second.test/gateway"

CHOKE_POINTS = [
    (getattr(import_module(module), kind), name)
    for module, kinds, name in (
        ("httpx", ["Client", "AsyncClient"], "_send_single_request"),
        ("httpx2", ["Client", "AsyncClient"], "_send_single_request"),
        ("aiohttp", ["ClientRequest"], "send"),
        ("urllib3.connectionpool", ["HTTPConnectionPool"], "_make_request"),
        ("websockets.client", ["ClientProtocol"], "send_request"),
    )
    if find_spec(module.partition(".")[0])
    for kind in kinds
]


def functions() -> list[Any]:
    """Return the current functions at each patched place."""
    return [vars(owner).get(name) for owner, name in CHOKE_POINTS]


ORIGINALS = functions()


def are_original() -> bool:
    return all(now is original for now, original in zip(functions(), ORIGINALS, strict=True))


def are_replaced() -> bool:
    return not any(now is original for now, original in zip(functions(), ORIGINALS, strict=True))


@pytest.fixture(autouse=True)
def everything_is_as_it_was() -> Iterator[None]:
    """Assert after every test that nothing is left replaced."""
    yield
    uninstrument()
    assert are_original()


@each_stack
@each_kind
@pytest.mark.parametrize("first", ["client", "instrument"])
async def test_every_client_is_reached(stack: Any, kind: str, first: str):
    """Clients made before and after it send the active span to a gateway, and nothing elsewhere or after the undo."""
    wire = Wire()
    client = wire.client(stack, kind) if first == "client" else None
    handle = instrument(GATEWAY)
    client = client or wire.client(stack, kind)
    await value_of(client.get(A))
    with mlflow.start_span("agent") as agent:
        await value_of(client.get(A))
        with mlflow.start_span("step") as step:
            await value_of(client.get(A))
        await value_of(client.get(OTHER))
        handle.uninstrument()
        await value_of(client.get(A))
    with handle, otel_span():
        await value_of(client.get(A))
    assert wire.sent() == [[], [named_by(agent)], [named_by(step)], [], [], []]


@each_stack
@each_kind
async def test_what_is_sent_follows_the_rules(stack: Any, kind: str):
    """An existing traceparent is kept in any case; OpenTelemetry's span counts; a tracestate is sent along."""
    wire = Wire()
    client = wire.client(stack, kind)
    with instrument(GATEWAY):
        with mlflow.start_span("agent"):
            await value_of(client.get(A, headers={"TraceParent": TRACEPARENT}))
        with otel_span() as otel:
            await value_of(client.get(A))
        with remote_span() as remote:
            await value_of(client.get(A))
    assert wire.sent() == [[TRACEPARENT], [named_by_otel(otel)], [remote]]
    assert wire.sent("tracestate") == [[], [], ["vendor=1"]]


@each_stack
@each_kind
@pytest.mark.parametrize("urls", [[A, B], [A, OTHER], [A, OTHER, B], [OTHER, A, OTHER + "/2"], [A, SECOND, OTHER]])
async def test_each_hop_of_a_redirect_is_looked_at(stack: Any, kind: str, urls: list[str]):
    """Our header is removed if a redirect leaves the gateways; the user's own is kept."""
    wire = Wire(redirects(dict(pairwise(urls))))
    client = wire.client(stack, kind, follow_redirects=True)
    with instrument(GATEWAY, SECOND), mlflow.start_span("agent") as agent:
        await value_of(client.get(urls[0]))
        await value_of(client.get(urls[0], headers={"traceparent": TRACEPARENT}))
    ours = [[named_by(agent)] if url.startswith((GATEWAY, SECOND)) else [] for url in urls]
    assert wire.sent() == ours + [[TRACEPARENT]] * len(urls)


@each_stack
@each_kind
@pytest.mark.parametrize("urls", [[A, A], [SECOND, SECOND], [A, SECOND], [SECOND, A], [SECOND, OTHER], [A, OTHER]])
async def test_a_wrapped_client_keeps_its_own_gateways(stack: Any, kind: str, urls: list[str]):
    """A wrapped client's request may go to its own gateways and to the process's, also in redirects between them."""
    wire = Wire(redirects({urls[0]: urls[1]} if urls[0] != urls[1] else {}))
    client = wrap_httpx(wire.client(stack, kind, follow_redirects=True), [SECOND])
    with instrument(GATEWAY), mlflow.start_span("agent") as agent:
        await value_of(client.get(urls[0]))
    assert wire.sent() == [[named_by(agent)] if url != OTHER else [] for url in urls[: len(wire.requests)]]


@pytest.mark.parametrize(
    ("gateways", "environment", "message"),
    [
        ([], None, r"Give its URL, like instrument\('http://localhost:5000/gateway'\), or set AGENT_GATEWAY_URLS"),
        ([], " , ", "No gateway is configured"),
        ([], "localhost:5000", "In the environment variable AGENT_GATEWAY_URLS: .*no scheme"),
        (["localhost:5000"], GATEWAY, "no scheme"),
        ([GATEWAY, 5], None, "5 is not a gateway URL"),
    ],
)
def test_bad_gateways_are_an_error_at_once(gateways, environment, message, monkeypatch: pytest.MonkeyPatch):
    """An invalid gateway raises an error at configuration, and nothing is replaced."""
    if environment is not None:
        monkeypatch.setenv("AGENT_GATEWAY_URLS", environment)
    with pytest.raises(ConfigurationError, match=message):
        instrument(*gateways)
    assert are_original()


def test_the_gateways_are_those_of_the_environment_by_default(monkeypatch: pytest.MonkeyPatch):
    """Without an argument AGENT_GATEWAY_URLS is read once, at that time; an argument replaces it."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", f"{GATEWAY}, {SECOND}")
    with instrument() as handle:
        assert list(handle.gateways) == [GATEWAY, SECOND]
        monkeypatch.setenv("AGENT_GATEWAY_URLS", OTHER)
        assert list(handle.gateways) == [GATEWAY, SECOND]
    with instrument(OTHER) as handle:
        assert list(handle.gateways) == [OTHER]


def test_trace_headers_know_the_gateways():
    """trace_headers() uses the gateways of instrument() while it is active."""
    with mlflow.start_span("agent") as span:
        with instrument(GATEWAY):
            assert trace_headers(A) == {"traceparent": named_by(span)}
            assert trace_headers(OTHER) == {}
            assert trace_headers(A, [OTHER]) == {}
        assert trace_headers(A) == {}


@each_stack
def test_each_call_is_undone_for_itself(stack: Any):
    """Handles may overlap and be undone in any order and twice; the last one restores what was replaced."""
    wire = Wire()
    client = wire.client(stack)
    first, second, third = instrument(GATEWAY), instrument(SECOND), instrument(GATEWAY)
    replaced = functions()
    assert are_replaced()
    with mlflow.start_span("agent") as agent:
        for handle in (first, first, second):
            handle.uninstrument()
            assert functions() == replaced
            client.get(A)
            client.get(SECOND)
        third.uninstrument()
        assert are_original()
        client.get(A)
    ours = [named_by(agent)]
    assert wire.sent() == [ours, ours, ours, ours, ours, [], []]


def test_uninstrument_undoes_all_of_them():
    """uninstrument() needs no handle, does nothing if nothing is active, and deactivates all handles."""
    uninstrument()
    handles = [instrument(GATEWAY), instrument(SECOND)]
    uninstrument()
    assert are_original()
    with instrument(GATEWAY):
        for handle in handles:
            handle.uninstrument()
        uninstrument()
        assert are_original()
    assert are_original()


def test_an_error_inside_undoes_it_too():
    """As a context manager it is undone on every exit."""
    with pytest.raises(ZeroDivisionError), instrument(GATEWAY):
        raise ZeroDivisionError
    assert are_original()


@each_stack
def test_what_somebody_else_put_on_top_stays(stack: Any):
    """A third party's replacement on top of ours is kept; ours below it does nothing until it is needed again."""
    calls: list[str] = []
    handle = instrument(GATEWAY)
    ours = stack.Client._send_single_request

    def theirs(self: Any, request: Any) -> Any:
        calls.append(str(request.url))
        return ours(self, request)

    stack.Client._send_single_request = theirs
    wire = Wire()
    client = wire.client(stack)
    with mlflow.start_span("agent") as agent:
        handle.uninstrument()
        assert stack.Client._send_single_request is theirs
        client.get(A)
        with instrument(GATEWAY):
            client.get(A)
        assert stack.Client._send_single_request is theirs
        stack.Client._send_single_request = ours
        client.get(A)
        with instrument(GATEWAY):
            client.get(A)
    assert calls == [A, A]
    assert wire.sent() == [[], [named_by(agent)], [], [named_by(agent)]]
    assert are_original()


class Listener(ModelCall):
    """A model call that is notified of the end of its requests."""

    gateways = Gateways([GATEWAY])

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def answered(self, response: Any) -> None:
        self.answers.append(response)


@each_stack
def test_a_request_is_told_of_once(stack: Any):
    """If a third party's replacement hides ours and ours is installed again, a call is notified once per request."""
    client = Wire().client(stack)
    handle = instrument(GATEWAY)
    ours = stack.Client._send_single_request
    stack.Client._send_single_request = lambda self, request: ours(self, request)
    listener = Listener()
    reset = model_call.set(listener)
    try:
        with instrument(SECOND):
            client.get(A)
        handle.uninstrument()
        client.get(A)
    finally:
        model_call.reset(reset)
    assert len(listener.answers) == 1
    stack.Client._send_single_request = ours
    with instrument(GATEWAY):
        pass
    assert are_original()


@pytest.mark.usefixtures("guards_hold")
@each_stack
@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
async def test_nothing_inside_fails_a_request(stack: Any, kind: str, caplog: pytest.LogCaptureFixture):
    """If something fails inside, the request is sent unchanged, with one warning."""
    wire = Wire()
    client = wire.client(stack, kind)
    with instrument(GATEWAY), trace.use_span(BrokenSpan()):
        for _ in range(2):
            await value_of(client.get(A))
    assert wire.sent() == [[], []]
    (warning,) = warnings_in(caplog)
    assert "Could not add the trace context to a request" in warning


@each_stack
async def test_the_users_errors_come_through(stack: Any):
    """The caller gets the transport's exception, and the client stays usable."""

    def fail(request: Any) -> Any:
        raise stack.ConnectError("no such host", request=request)

    with instrument(GATEWAY):
        for kind in ("Client", "AsyncClient"):
            with pytest.raises(stack.ConnectError, match="no such host"):
                await value_of(Wire(fail).client(stack, kind).get(A))


@pytest.mark.usefixtures("guards_hold")
def test_a_choke_point_that_has_moved_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """If a library no longer has the function, one warning has its version, and the other libraries work."""
    stack = STACKS[0]
    monkeypatch.setattr(instrumentation._patches, "_patches", {})
    monkeypatch.delattr(stack.AsyncClient, "_send_single_request")
    wire = Wire()
    with mlflow.start_span("agent") as agent:
        for _ in range(2):
            with instrument(GATEWAY):
                wire.client(stack).get(A)
    assert wire.sent() == [[named_by(agent)]] * 2
    (warning,) = warnings_in(caplog)
    assert f"{stack.__name__} {stack.__version__}" in warning
    assert f"Could not replace {stack.__name__}:AsyncClient._send_single_request" in warning
    monkeypatch.undo()


@pytest.mark.parametrize("missing", [["aiohttp"], ["httpx"], ["httpx2"], ["aiohttp", "httpx", "httpx2"]])
def test_a_library_that_is_not_installed_costs_nothing(missing: list[str], monkeypatch: pytest.MonkeyPatch, caplog):
    """Any of the three may be missing: no import, no warning, no error; the others work."""
    monkeypatch.setattr(instrumentation._patches, "_patches", {})
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with instrument(GATEWAY):
        replaced = {owner.__module__.partition(".")[0] for owner, name in CHOKE_POINTS if hasattr(owner, name)}
        now = {
            owner.__module__.partition(".")[0]
            for (owner, _), function, original in zip(CHOKE_POINTS, functions(), ORIGINALS, strict=True)
            if function is not original
        }
    assert now == replaced - set(missing)
    assert warnings_in(caplog) == []


def test_what_is_imported_later_is_reached():
    """A library that the program imports after instrument() is instrumented too."""
    names = [stack.__name__ for stack in STACKS]
    program = (
        "import sys\n"
        "from agent_gateway_client import instrument\n"
        f"names = {names!r}\n"
        "assert not set(names) & set(sys.modules), sys.modules\n"
        f"instrument({GATEWAY!r})\n"
        "from importlib import import_module\n"
        "for name in names:\n"
        "    assert hasattr(import_module(name).Client._send_single_request, '__wrapped__'), name\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@each_stack
async def test_many_requests_at_once_each_name_their_own_span(stack: Any):
    """50 tasks share a client: each request has its own task's active span as parent."""
    wire = Wire()
    client = wire.client(stack, "AsyncClient")
    expected = {}

    async def ask(number: int) -> None:
        with mlflow.start_span(f"agent {number}") as span:
            await asyncio.sleep(0)
            await client.get(f"{GATEWAY}/{number}")
            expected[f"{GATEWAY}/{number}"] = [named_by(span)]

    with instrument(GATEWAY):
        await asyncio.gather(*map(ask, range(50)))
    assert len(expected) == 50
    assert dict(zip(wire.urls, wire.sent(), strict=True)) == expected


@pytest.mark.slow
@each_stack
def test_it_may_be_switched_on_and_off_in_many_threads(stack: Any):
    """Threads that each turn it on for their own requests do not affect each other."""
    failures: list[BaseException] = []

    def agent(number: int) -> None:
        try:
            gateway = f"http://gw{number}.test/gateway"
            for _ in range(20):
                wire = Wire()
                client = wire.client(stack)
                with mlflow.start_span("agent") as span, instrument(gateway):
                    client.get(gateway)
                    client.get(OTHER)
                assert wire.sent() == [[named_by(span)], []]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=agent, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert are_original()


@each_stack
def test_repeating_it_keeps_nothing(stack: Any):
    """The same URL repeatedly, as from a notebook's cell: nothing accumulates, and each handle is undone once."""
    wire = Wire()
    client = wire.client(stack)
    first = instrument(GATEWAY)
    gateways = instrumented_gateways()
    forgotten = [weakref.ref(instrument(GATEWAY)) for _ in range(100)]
    second = instrument(GATEWAY)
    assert [ref() for ref in forgotten] == [None] * 100
    assert instrumented_gateways() is gateways
    assert list(gateways) == [GATEWAY]
    first.uninstrument()
    first.uninstrument()
    second.uninstrument()
    with mlflow.start_span("agent") as agent:
        client.get(A)
        uninstrument()
        third = instrument(GATEWAY)
        second.uninstrument()
        client.get(A)
        third.uninstrument()
        client.get(A)
    assert wire.sent() == [[named_by(agent)], [named_by(agent)], []]


def test_gateways_that_are_named_twice_are_looked_at_once():
    """Each prefix of a host is kept once, however often it is configured."""
    assert Gateways([A, A, B, A + "/"])._prefixes == Gateways([A, B])._prefixes


@each_stack
def test_what_somebody_else_put_back_is_replaced_again(stack: Any):
    """Calling it again replaces the function again after a third party restored the original."""
    wire = Wire()
    client = wire.client(stack)
    instrument(GATEWAY)
    for (owner, name), original in zip(CHOKE_POINTS, ORIGINALS, strict=True):
        setattr(owner, name, original)
    instrument(GATEWAY)
    with mlflow.start_span("agent") as agent:
        client.get(A)
    assert wire.sent() == [[named_by(agent)]]


@pytest.mark.parametrize(
    ("urls", "gateways"),
    [([[A, B]], None), ([(A,), B], None), ([], [A, B]), ([A], [B]), ([Gateways([A])], {B}), ([[A]], (B,))],
)
def test_gateways_are_named_one_by_one_or_in_lists(urls: list[Any], gateways: Any):
    """All process-wide functions accept URLs, lists of them, and gateways=."""
    with instrument(*urls, gateways=gateways) as handle:
        assert list(handle.gateways) == [A, B]
    if find_spec("litellm"):
        from agent_gateway_client import instrument_litellm

        with instrument_litellm(*urls, gateways=gateways) as handle:
            assert list(handle.gateways) == [A, B]
    if find_spec("langchain_core"):
        from agent_gateway_client import GatewayCallbackHandler

        with GatewayCallbackHandler(*urls, gateways=gateways) as handler:
            assert list(handler.gateways) == [A, B]
