"""The companion's pages in an ASGI application."""

from agent_gateway_client.server.asgi.exchange import ASGIApp, Message, Receive, Scope, Send
from agent_gateway_client.server.bearer import is_opened_by
from agent_gateway_client.server.observed.companion import Companion
from agent_gateway_client.server.observed.pages import PATHS, closed, read_page


def is_for_page(scope: Scope) -> bool:
    """Return whether a request is for one of the pages, below any prefix."""
    return bool(scope["method"] in ("GET", "HEAD") and scope["path"].endswith(PATHS))


async def serve_page(
    companion: Companion, token: str | None, guard: ASGIApp | None, exchange: tuple[Scope, Receive, Send]
) -> bool:
    """Answer a request for a page.

    Args:
        companion: The companion.
        token: The token that the caller must send, if one is set.
        guard: Without a token, the application that authenticates the caller: its 404 means that the caller is allowed.
        exchange: The request.

    Returns:
        Whether the request was answered. If not, the gateway does not have this page.
    """
    scope, receive, send = exchange
    if token is not None:
        is_open = is_opened_by(token, _authorization(scope))
    elif guard is None:
        return False
    else:
        check = _AccessCheck(send)
        await guard(scope, receive, check.send)
        if not check.passed:
            return True
        is_open = True
    page = read_page(scope["path"], companion) if is_open else closed()
    headers = [(name.encode(), value.encode()) for name, value in page.headers]
    await send({"type": "http.response.start", "status": page.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else page.body})
    return True


class _AccessCheck:
    """Passes on an application's response unless it is a 404."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.passed = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.passed = message["status"] == 404
        if not self.passed:
            await self._send(message)


def _authorization(scope: Scope) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"authorization"), None)
