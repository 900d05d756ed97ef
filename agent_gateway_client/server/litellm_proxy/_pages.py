"""The companion's pages in the proxy, for callers with one of its keys."""

import sys
from typing import Any

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import version_of, warn_once
from agent_gateway_client.server.bearer import is_opened_by
from agent_gateway_client.server.observed.companion import Companion
from agent_gateway_client.server.observed.pages import PATHS, closed, read_page

_guard = Guard("The proxy has no page /agent-gateway/status", "litellm")


def add_pages(companion: Companion, token: str | None) -> None:
    """Add the pages to the proxy in this process, if there is one. Never raises.

    Args:
        companion: The companion.
        token: The token that callers must send; without it, one of the proxy's keys.
    """
    server: Any = sys.modules.get("litellm.proxy.proxy_server")
    if server is None:
        return
    app, key_auth = getattr(server, "app", None), getattr(server, "user_api_key_auth", None)
    if app is None or key_auth is None:
        warn_once(
            "litellm_proxy.pages",
            "litellm %s has moved its application; the proxy has no page /agent-gateway/status. Upgrade "
            "agent-gateway-client.",
            version_of("litellm"),
        )
        return
    with _guard:
        from fastapi import Depends, Request, Response

        def serve(request: Request) -> Response:
            is_open = token is None or is_opened_by(token, request.headers.get("authorization"))
            page = read_page(request.url.path, companion) if is_open else closed()
            return Response(page.body, page.status, dict(page.headers))

        keys = [Depends(key_auth)] if token is None else []
        for path in PATHS:
            app.add_api_route(path, serve, methods=["GET"], dependencies=keys, include_in_schema=False)
