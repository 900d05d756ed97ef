"""The HTTP request that a task of the proxy serves.

LiteLLM's key checks report what they refuse, such as a key whose budget is exhausted, with the request's body only. The
caller's ``traceparent`` is in the headers.
"""

import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import version_of, warn_once
from agent_gateway_client.server.asgi.exchange import ASGIApp, Receive, Scope, Send
from agent_gateway_client.server.routes import is_model_call
from agent_gateway_client.w3c import TRACEPARENT

_request: ContextVar[Mapping[str, Any] | None] = ContextVar("agent_gateway_client.litellm_request", default=None)

_guard = Guard("What LiteLLM's key checks refuse is not mirrored", "litellm")


def current_request() -> Mapping[str, Any]:
    """Return the request in the form of LiteLLM's ``proxy_server_request``; empty if it is not a traced model call."""
    return _request.get() or {}


def observe_requests() -> None:
    """Make the request known to the tasks that serve it, if this process is a proxy. Never raises."""
    server: Any = sys.modules.get("litellm.proxy.proxy_server")
    if server is None:
        return
    with _guard:
        app: Any = getattr(server, "app", None)
        if not hasattr(app, "middleware_stack"):
            warn_once(
                "litellm_proxy.requests",
                "litellm %s has moved its application; what its key checks refuse is not mirrored. Upgrade "
                "agent-gateway-client.",
                version_of("litellm"),
            )
        elif app.middleware_stack is None:
            app.add_middleware(RequestObserver)
        else:
            # The configuration is read when the application starts, which takes no more middleware by then.
            app.middleware_stack = RequestObserver(app.middleware_stack)


class RequestObserver:
    """ASGI middleware that sets :func:`current_request` for traced model calls, and changes nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = None
        with _guard:
            request = _traced_request(scope)
        if request is None:
            await self._app(scope, receive, send)
            return
        token = _request.set(request)
        try:
            await self._app(scope, receive, send)
        finally:
            _request.reset(token)


def _traced_request(scope: Scope) -> Mapping[str, Any] | None:
    if scope["type"] != "http" or not is_model_call(scope):
        return None
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if TRACEPARENT not in headers:
        return None
    return {
        "headers": MappingProxyType(headers),
        "method": scope["method"],
        "url": scope["path"],
        "arrival_time": time.time(),
    }
