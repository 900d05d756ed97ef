"""Puts the trace context on a request of httpx's kind.

It is called for every request that is sent, for each retry and each hop of a redirect, with the URL as it goes out.
httpx copies all headers but ``Authorization`` to a redirect's target, so our own headers are taken off again where a
redirect leaves the gateway.
"""

from typing import Any, Protocol

from agent_gateway_client._guard import Guard
from agent_gateway_client.active_span import current_trace_context, is_received
from agent_gateway_client.w3c import TRACEPARENT

_guard = Guard("Could not add the trace context to a request; it is sent without it", "httpx", "httpx2")

_SENT_BY_US = "agent_gateway_client.headers"
"""The key in a request's extensions that holds the headers this package has set on it."""


class KnowsGateways(Protocol):
    """One or more sets of gateways."""

    def covers(self, scheme: str, host: str, port: int | None, path: str) -> bool:
        """Tell what :meth:`Gateways.covers` does."""


def propagate(request: Any, gateways: KnowsGateways) -> None:
    """Put the current trace context on an httpx request to a gateway; take ours off one that leaves. Never raises."""
    with _guard:
        url = request.url
        headers = request.headers
        extensions = request.extensions
        if _SENT_BY_US in extensions:
            # Ours from an earlier hop, or from when the same request was sent before, says nothing about this one.
            for name, value in extensions.pop(_SENT_BY_US).items():
                if headers.get(name) == value:
                    del headers[name]
        host, path = url.raw_host.decode("ascii"), url.raw_path.decode("ascii")
        if not gateways.covers(url.scheme, host, url.port, path):
            return
        if TRACEPARENT in headers and not is_received(headers.get(TRACEPARENT)):
            return
        context = current_trace_context()
        if context is not None:
            sent = context.to_headers()
            # httpx's update() takes four times as long.
            for name, value in sent.items():
                headers[name] = value
            extensions[_SENT_BY_US] = sent
