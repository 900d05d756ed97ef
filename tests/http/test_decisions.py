"""The log about a request: a DEBUG line, and a warning for a likely mistake."""

import logging
from typing import Any

import mlflow
import pytest

from agent_gateway_client import instrument, trace_headers, uninstrument, wrap_httpx
from agent_gateway_client.gateways import Gateways
from tests.support.client import (
    GATEWAY,
    OTHER,
    TRACEPARENT,
    Wire,
    each_stack,
    isolated,  # noqa: F401
    warnings_in,
)


@pytest.fixture(autouse=True)
def undone() -> Any:
    yield
    uninstrument()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]


@each_stack
def test_each_decision_is_a_line_at_debug(stack: Any, caplog: pytest.LogCaptureFixture):
    """The line has the URL without its query, the decision, the reason, and the span; never a credential."""
    client = Wire().client(stack)
    with instrument(GATEWAY), caplog.at_level(logging.DEBUG, "agent_gateway_client"):
        with mlflow.start_span("agent") as agent:
            client.get(f"{GATEWAY.replace('//', '//user:secret@')}/v1?key=secret")
            client.get(f"{GATEWAY}/v1", headers={"traceparent": TRACEPARENT})
            client.get(OTHER)
        client.get(f"{GATEWAY}/v1")
    sent, kept, other, without = lines(caplog)
    assert sent == (
        f"{GATEWAY}/v1: sent (it goes to a gateway, and a span is active, span {agent.span_id} of trace "
        f"{agent.trace_id.removeprefix('tr-')})"
    )
    assert (
        kept == f"{GATEWAY}/v1: kept (it goes to a gateway, and had a traceparent already, traceparent {TRACEPARENT})"
    )
    assert other == f"{OTHER}: not a gateway (it does not go to a gateway)"
    assert without == f"{GATEWAY}/v1: no span (it goes to a gateway, but no span is active)"


@each_stack
def test_where_debug_is_off_nothing_is_made(stack: Any, caplog: pytest.LogCaptureFixture, monkeypatch):
    """Without DEBUG no line is made, so a request costs nothing more."""
    monkeypatch.setattr("agent_gateway_client.http._notes.make_note", pytest.fail)
    with instrument(GATEWAY), caplog.at_level(logging.INFO, "agent_gateway_client"), mlflow.start_span("agent"):
        Wire().client(stack).get(f"{GATEWAY}/v1")
        Wire().client(stack).get(OTHER)


@each_stack
def test_a_list_without_a_span_is_nobodys_mistake(stack: Any, caplog: pytest.LogCaptureFixture):
    """A request for the gateway's models or health before the first span gives no warning.

    A later model call without a span still gives its own.
    """
    client = Wire().client(stack)
    with instrument(GATEWAY):
        client.get(f"{GATEWAY}/v1/models")
        assert warnings_in(caplog) == []
        client.post(f"{GATEWAY}/v1/chat/completions")
    assert "no span was active" in warnings_in(caplog)[0]


NEAR = [
    ("http://localhost:5000/gateway", "http://127.0.0.1:5000/gateway/v1", "use one spelling for both"),
    ("http://127.0.0.1:5000", "http://localhost:5000/v1", "use one spelling for both"),
    ("http://[::1]:5000", "http://localhost:5000/v1", "use one spelling for both"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/api/v1/chat/completions", "path is /gateway"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/gatewayx/v1/messages", "path is /gateway"),
    ("https://gw.test/gateway", "http://gw.test/gateway/v1", "and the request uses http"),
    ("http://gw.test:5000/gateway", "https://gw.test:5000/gateway/v1", "and the request uses https"),
]
FAR = [
    ("http://localhost:5000/gateway", "http://127.0.0.1:5001/gateway/v1"),
    ("http://localhost:5000/gateway", "http://127.0.0.1:5000/api/2.0/mlflow/traces"),
    ("http://gw.test:5000/gateway", "http://gw.test:5000/api/2.0/mlflow/traces"),
    ("http://gw.test:5000/gateway", "http://gw.test:6000/gateway/v1/chat/completions"),
    ("http://gw.test/gateway", "http://gw2.test/gateway/v1/chat/completions"),
    ("http://gw.test/gateway", "https://api.openai.com/v1/chat/completions"),
]


@each_stack
@pytest.mark.parametrize(("gateway", "url", "why"), NEAR)
@pytest.mark.parametrize("how", ["instrument", "wrap"])
def test_a_near_miss_is_one_warning(
    stack: Any, gateway: str, url: str, why: str, how: str, caplog: pytest.LogCaptureFixture
):
    """A URL that was probably meant to be the gateway but is not gets no header and one warning with the reason."""
    wire = Wire()
    client = wire.client(stack)
    if how == "wrap":
        wrap_httpx(client, [gateway])
    with instrument(gateway if how == "instrument" else "http://unused.test"), mlflow.start_span("agent"):
        for _ in range(3):
            client.get(url)
    assert wire.sent() == [[]] * 3
    (warning,) = warnings_in(caplog)
    assert warning.startswith(f"No trace context is sent to {url}: ")
    assert why in warning


@each_stack
@pytest.mark.parametrize(("gateway", "url"), FAR)
def test_other_requests_are_nobodys_mistake(stack: Any, gateway: str, url: str, caplog: pytest.LogCaptureFixture):
    """Other services, and the gateway server's other pages, like MLflow's API, cause no warning."""
    client = Wire().client(stack)
    with instrument(gateway), mlflow.start_span("agent"):
        client.get(url)
    assert warnings_in(caplog) == []
    assert url not in Gateways([gateway])


def test_trace_headers_say_it_too(caplog: pytest.LogCaptureFixture):
    """trace_headers() is empty for the same mistakes, with the same warnings."""
    gateway = "http://localhost:5000/gateway"
    with mlflow.start_span("agent"):
        assert [trace_headers("ws://127.0.0.1:5000/gateway/realtime", [gateway]) for _ in range(2)] == [{}] * 2
        assert trace_headers("http://[", [gateway]) == {}
    assert trace_headers(f"{gateway}/v1?key=secret", [gateway]) == {}
    near, without = warnings_in(caplog)
    assert "use one spelling for both" in near
    assert "no span was active" in without
    assert "secret" not in without


@each_stack
def test_of_requests_that_go_elsewhere_neither_path_nor_headers_are_read(stack: Any, monkeypatch: pytest.MonkeyPatch):
    """From the second one to a host on, if no log wants a line."""
    client = Wire().client(stack)
    with instrument(GATEWAY), mlflow.start_span("agent"):
        client.get(f"{OTHER}/v1")
        monkeypatch.setattr("agent_gateway_client.http._propagate.decide", pytest.fail)
        client.get(f"{OTHER}/v2")
