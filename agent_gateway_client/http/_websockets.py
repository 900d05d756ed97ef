"""websockets: patches the request that opens a connection, sync or async.

OpenAI's SDK opens its realtime and responses sockets with this library.
"""

from collections.abc import Callable
from typing import Any

from agent_gateway_client._guard import Guard
from agent_gateway_client._patching import Switch
from agent_gateway_client.active_span import model_call
from agent_gateway_client.http._decide import decide
from agent_gateway_client.http._known import known_gateways
from agent_gateway_client.http._notes import WEBSOCKET
from agent_gateway_client.http._redirects import must_remove, shares_hops, shares_hops_async
from agent_gateway_client.w3c import TRACEPARENT, TRACESTATE

_guard = Guard("Could not add the trace context to a websocket; it is opened without it", "websockets")


def _send_request(original: Callable[..., Any], switch: Switch) -> Any:
    # Each hop of a redirect has a new protocol and a new request with the caller's headers.
    def send_request(protocol: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if switch.is_on:
            _add_headers(protocol, request)
        return original(protocol, request, *args, **kwargs)

    return send_request


def _add_headers(protocol: Any, request: Any) -> None:
    with _guard:
        uri, headers = protocol.uri, request.headers
        present = ",".join(headers.get_all(TRACEPARENT))
        seen = {TRACEPARENT: present} if present else {}
        scheme = "https" if uri.secure else "http"
        gateways = known_gateways(model_call.get())
        is_covered = gateways.covers(scheme, uri.host, uri.port, request.path)
        outcome, context = decide(WEBSOCKET, scheme, uri.host, uri.port, request.path, seen, gateways, is_covered)
        if context is not None or (present and must_remove(outcome, present)):
            for name in (TRACEPARENT, TRACESTATE):
                if name in headers:
                    del headers[name]
        if context is not None:
            headers.update(context.to_headers())


REPLACEMENTS = {
    "websockets.client:ClientProtocol.send_request": _send_request,
    # websockets 17 has renamed the first, and made the second, without which connect() follows no redirects.
    "websockets.asyncio.client:connect.__await_impl__|websockets.asyncio.client:connect.connect": shares_hops_async,
    "websockets.sync.client:reconnect.connect|websockets.sync.client:connect": shares_hops,
}
"""The methods and their replacements while :func:`agent_gateway_client.instrument` is active."""
