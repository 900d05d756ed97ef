"""Adds the trace context to a request with the interface of httpx's.

Called for every request, including each retry and each hop of a redirect, with the final URL. httpx copies all headers
but ``Authorization`` to a redirect's target. If a redirect leaves the gateway, the headers are removed: those that this
package added, and those that other code added for a span of this process, as ``mlflow.openai.autolog()`` does.
"""

from typing import Any

from agent_gateway_client._guard import Guard
from agent_gateway_client.active_span import is_local_span
from agent_gateway_client.gateways import Gateways
from agent_gateway_client.http import _notes
from agent_gateway_client.http._decide import decide
from agent_gateway_client.w3c import TRACEPARENT, TRACESTATE

guard = Guard("Could not add the trace context to a request; it is sent without it", "httpx", "httpx2")

_SENT_BY_US = "agent_gateway_client.headers"
"""The key in a request's extensions for the trace context that this package has added to it."""

_LOCAL = "agent_gateway_client.local"
"""The key for the headers that other code has added for a span of this process."""


def is_marked(request: Any) -> bool:
    """Return whether an httpx request, or the hop before it, was sent to a gateway."""
    return _SENT_BY_US in request.extensions or _LOCAL in request.extensions


def sent_headers(request: Any) -> Any:
    """Return the headers that :func:`propagate` has just added to an httpx request; all of them if it added none."""
    context = request.extensions.get(_SENT_BY_US)
    return request.headers if context is None else context.to_headers()


def propagate(request: Any, gateways: Gateways, guard: Guard = guard) -> None:
    """Add the current trace context to an httpx request to a gateway; remove it if it goes elsewhere. Never raises.

    Args:
        request: The request, which is changed.
        gateways: The gateways that may get the trace context.
        guard: Reports an error.
    """
    try:
        url, extensions = request.url, request.extensions
        scheme, host, port = url.scheme, url.raw_host.decode(), url.port
        near = gateways.near(scheme, host, port)
        is_marked = _SENT_BY_US in extensions or _LOCAL in extensions
        if near is None and not is_marked and not _notes.is_wanted_of_all():
            return
        headers = request.headers
        if is_marked:
            _start_again(headers, extensions)
        path = url.raw_path.decode()
        is_covered = near is not None and (path in near or gateways.covers(scheme, host, port, path))
        outcome, context = decide(request.method, scheme, host, port, path, headers, gateways, is_covered)
        if context is not None:
            # httpx's update() takes four times as long.
            headers[TRACEPARENT] = context.traceparent
            if context.tracestate:
                headers[TRACESTATE] = context.tracestate
            extensions[_SENT_BY_US] = context
        elif outcome == "kept":
            if is_local_span(headers[TRACEPARENT]):
                extensions[_LOCAL] = {name: headers[name] for name in (TRACEPARENT, TRACESTATE) if name in headers}
        elif outcome == "not a gateway" and _LOCAL in extensions:
            _take_off(headers, extensions[_LOCAL])
    except Exception as error:
        guard.caught(error)


def _start_again(headers: Any, extensions: dict[str, Any]) -> None:
    """Remove what was added for an earlier hop, or when the same request was sent before."""
    if _SENT_BY_US in extensions:
        _take_off(headers, extensions.pop(_SENT_BY_US).to_headers())
    if _LOCAL in extensions and TRACEPARENT not in headers:
        # For a redirect that returns to the gateway; removed again if this hop does not.
        headers.update(extensions[_LOCAL])


def _take_off(headers: Any, ours: dict[str, str]) -> None:
    for name, value in ours.items():
        if headers.get(name) == value:
            del headers[name]
