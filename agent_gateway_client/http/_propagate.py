"""Adds the trace context to a request with the interface of httpx's.

Called for every request, including each retry and each hop of a redirect, with the final URL. httpx copies all headers
but ``Authorization`` to a redirect's target. If a redirect leaves the gateway, the headers are removed: those that this
package added, and those that other code added for a span of this process, as ``mlflow.openai.autolog()`` does.
"""

from typing import Any

from agent_gateway_client._guard import Guard
from agent_gateway_client.active_span import is_local_span
from agent_gateway_client.http import _notes
from agent_gateway_client.http._decide import KnowsGateways, decide
from agent_gateway_client.w3c import TRACEPARENT, TRACESTATE

_guard = Guard("Could not add the trace context to a request; it is sent without it", "httpx", "httpx2")

_SENT_BY_US = "agent_gateway_client.headers"
"""The key in a request's extensions for the headers that this package has added to it."""

_LOCAL = "agent_gateway_client.local"
"""The key for the headers that other code has added for a span of this process."""


def is_marked(request: Any) -> bool:
    """Return whether an httpx request, or the hop before it, was sent to a gateway."""
    return _SENT_BY_US in request.extensions or _LOCAL in request.extensions


def sent_headers(request: Any) -> Any:
    """Return the headers that :func:`propagate` has just added to an httpx request; all of them if it added none."""
    return request.extensions.get(_SENT_BY_US) or request.headers


def propagate(request: Any, gateways: KnowsGateways) -> None:
    """Add the current trace context to an httpx request to a gateway; remove it if it goes elsewhere. Never raises."""
    try:
        put_trace_context(request, gateways)
    except Exception as error:
        _guard.caught(error)


def put_trace_context(request: Any, gateways: KnowsGateways) -> None:
    """Do the same as :func:`propagate`, but may raise."""
    url, extensions = request.url, request.extensions
    scheme, host, port = url.scheme, url.raw_host.decode("ascii"), url.port
    if not gateways.is_near(scheme, host, port) and not is_marked(request) and not _notes.is_wanted_of_all():
        return
    headers = request.headers
    if _SENT_BY_US in extensions:
        # From an earlier hop, or from sending the same request before; out of date for this one.
        _take_off(headers, extensions.pop(_SENT_BY_US))
    if _LOCAL in extensions and TRACEPARENT not in headers:
        # For a redirect that returns to the gateway; removed again below if this hop does not.
        headers.update(extensions[_LOCAL])
    path = url.raw_path.decode("ascii")
    outcome, context = decide(request.method, scheme, host, port, path, headers, gateways)
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
