"""wrap_httpx(): our headers follow a redirect to a gateway, but not to other hosts."""

from itertools import pairwise
from typing import Any

import mlflow
import pytest

from agent_gateway_client import wrap_httpx
from tests.support.client import (
    GATEWAY,
    OTHER,
    TRACEPARENT,
    Wire,
    each_kind,
    each_stack,
    isolated,  # noqa: F401
    named_by,
    redirects,
    remote_span,
    value_of,
    warnings_in,
)

A, B = f"{GATEWAY}/a", f"{GATEWAY}/b"
SECOND = "https://second.test/gateway"


@each_stack
@each_kind
@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        ([A, B], [1, 1]),
        ([A, OTHER], [1, 0]),
        ([A, "http://gw.test:5001/gateway/a"], [1, 0]),
        ([A, "https://gw.test:5000/gateway/a"], [1, 0]),
        ([A, "http://gw.test:5000/login"], [1, 0]),
        ([A, "http://gw.test:5000/gateway2/a"], [1, 0]),
        ([A, "http://sub.gw.test:5000/gateway/a"], [1, 0]),
        ([A, "http://xn--1-zhc.example/gateway/a"], [1, 0]),
        ([A, OTHER, B], [1, 0, 1]),
        ([A, B, OTHER, "http://third.test/"], [1, 1, 0, 0]),
        ([OTHER, A], [0, 1]),
        ([OTHER, A, OTHER + "/2"], [0, 1, 0]),
        ([A, SECOND], [1, 1]),
        ([A, SECOND, OTHER, SECOND + "/2"], [1, 1, 0, 1]),
    ],
)
async def test_each_hop_of_a_redirect_is_looked_at(
    stack: Any, kind: str, urls: list[str], expected: list[int], caplog: pytest.LogCaptureFixture
):
    """Our headers are removed if a redirect leaves the gateways, and added again if it returns."""
    wire = Wire(redirects(dict(pairwise(urls))))
    client = wrap_httpx(wire.client(stack, kind, follow_redirects=True), [GATEWAY, SECOND])
    with remote_span() as value:
        await value_of(client.post(urls[0], content=b"x"))
    assert len(wire.requests) == len(urls)
    assert wire.sent() == [[value] * count for count in expected]
    assert wire.sent("tracestate") == [["vendor=1"] * count for count in expected]
    # The log distinguishes the gateway's host with another scheme from an unrelated host.
    near = [url for url in urls if url.startswith("https://gw.test")]
    assert len(warnings_in(caplog)) == len(near)


@each_stack
@each_kind
@pytest.mark.parametrize("urls", [[A, OTHER, B], [OTHER, A, OTHER + "/2"], [A, B]])
async def test_a_redirect_never_takes_the_users_own_traceparent(stack: Any, kind: str, urls: list[str]):
    """A user's own traceparent and tracestate go wherever the client sends them."""
    wire = Wire(redirects(dict(pairwise(urls))))
    client = wrap_httpx(wire.client(stack, kind, follow_redirects=True), [GATEWAY])
    with mlflow.start_span("agent"):
        await value_of(client.get(urls[0], headers={"TraceParent": TRACEPARENT, "TraceState": "mine=1"}))
    assert wire.sent() == [[TRACEPARENT]] * len(urls)
    assert wire.sent("tracestate") == [["mine=1"]] * len(urls)


@each_stack
@each_kind
async def test_what_the_users_hook_puts_in_its_place_stays(stack: Any, kind: str):
    """A traceparent that the user's hook sets on a redirect out of the gateways is not treated as ours."""

    def hook(request: Any) -> None:
        if request.url.host == "other.test":
            request.headers["traceparent"] = TRACEPARENT

    async def async_hook(request: Any) -> None:
        hook(request)

    wire = Wire(redirects({A: OTHER}))
    hooks = {"request": [hook if kind == "Client" else async_hook]}
    client = wrap_httpx(wire.client(stack, kind, follow_redirects=True, event_hooks=hooks), [GATEWAY])
    with mlflow.start_span("agent") as span:
        await value_of(client.get(A))
    assert wire.sent() == [[named_by(span)], [TRACEPARENT]]
