"""ASGI without a server: sends a request to an application and records its messages."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.mirror import Convention
from tests.support.server import DEADLINE_S, TRACEPARENT, MemoryDestination, facts_of

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

TRACED = [(b"traceparent", TRACEPARENT.encode())]
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


def http_scope(headers: Iterable[tuple[bytes, bytes]] = TRACED, **other: Any) -> dict[str, Any]:
    """Return the scope of a POST request, as uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 40000),
        "server": ("127.0.0.1", 5000),
        "state": {},
        **other,
    }


def start(status: int = 200, headers: list[tuple[bytes, bytes]] = JSON) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes = b"{}", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


class Client:
    """The other side of an ASGI application: sends one request, keeps the answer, and may disconnect.

    Args:
        hang_up_after: Messages of the answer after which it disconnects; by default never. As with uvicorn, an
            application that receives after the whole answer gets ``http.disconnect`` too.
        raises: Whether sending to a disconnected client raises, as with some servers.
    """

    def __init__(self, *, hang_up_after: int | None = None, raises: bool = False) -> None:
        self.sent: list[Message] = []
        self._hang_up_after = hang_up_after
        self._raises = raises
        self._asked = False
        self._changed = asyncio.Condition()

    @property
    def gone(self) -> bool:
        return self._hang_up_after is not None and len(self.sent) >= self._hang_up_after

    @property
    def answered(self) -> bool:
        return any(m["type"] == "http.response.body" and not m.get("more_body") for m in self.sent)

    @property
    def content(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent if m["type"] == "http.response.body")

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"{}", "more_body": False}
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self.gone or self.answered), DEADLINE_S)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.gone and self._raises:
            raise OSError("the client has gone")
        async with self._changed:
            if not self.gone:
                self.sent.append(message)
            self._changed.notify_all()


def answering(*messages: Message) -> Any:
    """Return an application that reads the request and sends these messages, like Starlette.

    It watches for a disconnect while it sends, and then stops.
    """

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        gone = asyncio.ensure_future(receive())
        for message in messages:
            await send(message)
            for _ in range(3):
                await asyncio.sleep(0)
            if gone.done():
                return
        gone.cancel()

    return app


class Mirrors:
    """An exporter, and the mirrors that it sent."""

    def __init__(self, convention: Convention = Convention.MLFLOW) -> None:
        self.destination = MemoryDestination(convention=convention)
        self.exporter = Exporter(self.destination)

    @property
    def spans(self) -> list[Any]:
        assert self.exporter.flush(DEADLINE_S)
        return self.destination.spans

    @property
    def only(self) -> dict[str, Any]:
        """The facts of the only gateway span."""
        (span,) = [span for span in self.spans if span.name.startswith("gateway/")]
        return facts_of(span)

    @property
    def error_type(self) -> str | None:
        """The error type of the only gateway span; its status agrees."""
        (span,) = [span for span in self.spans if span.name.startswith("gateway/")]
        error: str | None = self.only.get("error.type")
        assert span.status.is_ok is (error is None)
        return error
