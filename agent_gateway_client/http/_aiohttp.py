"""aiohttp: patches the function that sends all requests, and adapts its requests to the interface of httpx's."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from agent_gateway_client._guard import Guard
from agent_gateway_client._patching import Switch
from agent_gateway_client.active_span import model_call
from agent_gateway_client.http._known import known_gateways
from agent_gateway_client.http._opentelemetry import is_by_instrumentation
from agent_gateway_client.http._propagate import propagate
from agent_gateway_client.http._redirects import hops, shares_hops_async
from agent_gateway_client.w3c import TRACEPARENT, TRACESTATE

_guard = Guard("Could not add the trace context to a request of aiohttp; it is sent without it", "aiohttp")

_EXTENSIONS = "_agent_gateway_client_extensions"


class AiohttpRequest:
    """Adapts a request of aiohttp for :func:`propagate`.

    aiohttp creates a new request for each hop of a redirect from the user's headers, so a header that is set here is
    never forwarded to another host. :mod:`._redirects` has the state that the hops share.

    Args:
        request: An ``aiohttp.ClientRequest`` that is about to be sent.
    """

    def __init__(self, request: Any) -> None:
        url = request.url
        self.method = request.method
        self.url = SimpleNamespace(
            scheme=url.scheme,
            raw_host=(url.raw_host or "").encode(),
            port=url.port,
            raw_path=url.raw_path.encode(),
        )
        self.headers = _Headers(request.headers)
        shared = hops.get()
        # Stored on the request because a middleware may send it twice.
        self.extensions: dict[str, Any] = vars(request).setdefault(_EXTENSIONS, {} if shared is None else shared)


class _Headers:
    def __init__(self, headers: Any) -> None:
        self._headers = headers
        self._replaces = is_by_instrumentation(headers.get(TRACEPARENT))

    def __contains__(self, name: str) -> bool:
        return name in self._headers and not self._replaces

    def __delitem__(self, name: str) -> None:
        del self._headers[name]

    def get(self, name: str) -> str | None:
        value: str | None = self._headers.get(name)
        return value

    def __getitem__(self, name: str) -> str:
        value: str = self._headers[name]
        return value

    def update(self, headers: dict[str, str]) -> None:
        self._headers.update(headers)

    def __setitem__(self, name: str, value: str) -> None:
        if self._replaces and name == TRACEPARENT:
            self._headers.popall(TRACESTATE, None)
        self._headers[name] = value


def _send(original: Callable[..., Any], switch: Switch) -> Any:
    async def send(request: Any, *args: Any, **kwargs: Any) -> Any:
        if switch.is_on:
            _propagate(request)
        return await original(request, *args, **kwargs)

    return send


def _propagate(request: Any) -> None:
    with _guard:
        if request.method != "CONNECT":  # it is sent to a proxy
            propagate(AiohttpRequest(request), known_gateways(model_call.get()), _guard)


REPLACEMENTS = {"aiohttp:ClientRequest.send": _send, "aiohttp:ClientSession._request": shares_hops_async}
"""The functions and their replacements while :func:`agent_gateway_client.instrument` is active."""
