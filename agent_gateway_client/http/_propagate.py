"""Puts the trace context on a request of httpx's kind.

It is called for every request that is sent, for each retry and each hop of a redirect, with the URL as it goes out.
httpx copies all headers but ``Authorization`` to a redirect's target. Where a redirect leaves the gateway, the headers
are taken off again: those that this package set, and those that somebody else in this process set for one of its spans,
as ``mlflow.openai.autolog()`` does.
"""

from typing import Any

from agent_gateway_client._guard import Guard
from agent_gateway_client.active_span import is_local_span
from agent_gateway_client.http._decide import KnowsGateways, decide
from agent_gateway_client.w3c import TRACEPARENT, TRACESTATE

_guard = Guard("Could not add the trace context to a request; it is sent without it", "httpx", "httpx2")

_SENT_BY_US = "agent_gateway_client.headers"
"""The key in a request's extensions that holds the headers this package has set on it."""

_LOCAL = "agent_gateway_client.local"
"""The key for the headers that somebody else has set for a span of this process."""


def is_marked(request: Any) -> bool:
    """Tell whether an httpx request, or the hop before it, was sent to a gateway."""
    return _SENT_BY_US in request.extensions or _LOCAL in request.extensions


def propagate(request: Any, gateways: KnowsGateways) -> None:
    """Put the current trace context on an httpx request to a gateway; take it off one that leaves. Never raises."""
    with _guard:
        put_trace_context(request, gateways)


def put_trace_context(request: Any, gateways: KnowsGateways) -> None:
    """Do what :func:`propagate` does; may raise."""
    url, headers, extensions = request.url, request.headers, request.extensions
    if _SENT_BY_US in extensions:
        # Ours from an earlier hop, or from when the same request was sent before, says nothing about this one.
        _take_off(headers, extensions.pop(_SENT_BY_US))
    if _LOCAL in extensions and TRACEPARENT not in headers:
        # For a redirect that comes back; it is taken off again below where this one does not.
        headers.update(extensions[_LOCAL])
    host, path = url.raw_host.decode("ascii"), url.raw_path.decode("ascii")
    outcome, context = decide(request.method, url.scheme, host, url.port, path, headers, gateways)
    if context is not None:
        sent = context.to_headers()
        # httpx's update() takes four times as long.
        for name, value in sent.items():
            headers[name] = value
        extensions[_SENT_BY_US] = sent
    elif outcome == "kept":
        if is_local_span(headers[TRACEPARENT]):
            extensions[_LOCAL] = {name: headers[name] for name in (TRACEPARENT, TRACESTATE) if name in headers}
    elif outcome == "not a gateway" and _LOCAL in extensions:
        _take_off(headers, extensions[_LOCAL])


def _take_off(headers: Any, ours: dict[str, str]) -> None:
    for name, value in ours.items():
        if headers.get(name) == value:
            del headers[name]
