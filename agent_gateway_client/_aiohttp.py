"""aiohttp's request, in the shape of httpx's."""

from types import SimpleNamespace
from typing import Any

from agent_gateway_client._otel_http import is_by_aiohttp_instrumentation
from agent_gateway_client.propagation import TRACEPARENT, TRACESTATE

_EXTENSIONS = "_agent_gateway_client_extensions"


class AiohttpRequest:
    """What :func:`agent_gateway_client.http.propagate` reads and writes of a request.

    aiohttp makes a new request for each hop of a redirect, out of the headers that the user gave: a header that is set
    here never goes on to another host.

    Args:
        request: An ``aiohttp.ClientRequest`` that is about to be sent.
    """

    def __init__(self, request: Any) -> None:
        url = request.url
        self.url = SimpleNamespace(
            scheme=url.scheme,
            raw_host=(url.raw_host or "").encode(),
            port=url.port,
            raw_path=url.raw_path.encode(),
        )
        self.headers = _Headers(request.headers)
        # Kept on the request, which a middleware may send twice.
        self.extensions: dict[str, Any] = vars(request).setdefault(_EXTENSIONS, {})


class _Headers:
    def __init__(self, headers: Any) -> None:
        self._headers = headers
        self._makes_room = is_by_aiohttp_instrumentation(headers.get(TRACEPARENT))

    def __contains__(self, name: str) -> bool:
        return name in self._headers and not self._makes_room

    def __delitem__(self, name: str) -> None:
        del self._headers[name]

    def get(self, name: str) -> str | None:
        value: str | None = self._headers.get(name)
        return value

    def __setitem__(self, name: str, value: str) -> None:
        if self._makes_room and name == TRACEPARENT:
            self._headers.popall(TRACESTATE, None)
        self._headers[name] = value
