"""Records times, status and bodies of a call from the messages between the server and the application."""

import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from agent_gateway_client.server.call import CLIENT_DISCONNECT, GatewayCall, status_code
from agent_gateway_client.server.reading.bodies import CompressedBody, KeptBody, can_be_expanded
from agent_gateway_client.server.reading.details import is_success
from agent_gateway_client.server.reading.responses import LAST_CHUNKS, has_last_event

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Exchange:
    """Passes on the messages of one request without changes or delay, and records the facts of its call.

    Attributes:
        request: The request's body; ``None`` if it is not kept.
        response: The response's body; ``None`` if it has not started or cannot be read.
        last_chunk_ns: When the last chunk of the response was sent, or an empty response ended, in nanoseconds since
            the epoch.
    """

    __slots__ = ("_call", "_complete", "_receive", "_send", "last_chunk_ns", "request", "response")

    def __init__(self, call: GatewayCall, receive: Receive, send: Send, *, keep_request: bool) -> None:
        self.request = KeptBody() if keep_request else None
        self.response: KeptBody | CompressedBody | None = None
        self.last_chunk_ns: int | None = None
        self._call = call
        self._receive = receive
        self._send = send
        self._complete = False

    def is_over(self) -> bool:
        """Return whether the caller has the whole response, or a stream's last event, after which many disconnect."""
        return self._complete or (
            self.response is not None
            and self._call.streaming is True
            and has_last_event(self.response.last_chunks(LAST_CHUNKS))
        )

    async def receive(self) -> Message:
        """ASGI's ``receive`` for the application."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            if not self.is_over():
                self._call.end(CLIENT_DISCONNECT)
        elif self.request is not None and (chunk := message.get("body")):
            self.request.add(chunk)
        return message

    async def send(self, message: Message) -> None:
        """ASGI's ``send`` for the application."""
        kind = message["type"]
        if kind == "http.response.start":
            message = self._begin_response(message)
        elif kind in _BODY_MESSAGES:
            self._add_body(message)
        try:
            await self._send(message)
        except OSError:
            # The server raises it if the client has disconnected. A provider's failure cannot come out of send().
            if not self._was_over_before(message):
                self._call.end(CLIENT_DISCONNECT)
            raise

    def _begin_response(self, message: Message) -> Message:
        headers = message.get("headers", ())
        if not isinstance(headers, (list, tuple)):
            # ASGI allows any iterable, and some can be read only once.
            headers = list(headers)
            message = {**message, "headers": headers}
        # str() of an HTTPStatus is "HTTPStatus.NOT_FOUND" before Python 3.11.
        self._call.http_status = status_code(message["status"])
        self.response = body_to_keep(self._call, headers)
        return message

    def _add_body(self, message: Message) -> None:
        self._complete = not message.get("more_body", False)
        if chunk := message.get("body"):
            # Taken before the chunk is sent, so that the client's span contains the mirror.
            now = time.time_ns()
            if self.last_chunk_ns is None and self._call.streaming:
                self._call.time_to_first_chunk_ns = now - self._call.start_time_ns
            self.last_chunk_ns = now
            if self.response is not None:
                self.response.add(chunk)
        elif self._complete and self.last_chunk_ns is None:
            # An empty body, or a file that the server sends. A background task may follow.
            self.last_chunk_ns = time.time_ns()

    def _was_over_before(self, message: Message) -> bool:
        """Return whether the caller had the whole response, or a stream's last event, before this message."""
        if self.response is None or not self._call.streaming:
            return False
        last_chunks = self.response.last_chunks(LAST_CHUNKS + 1)
        return has_last_event(last_chunks.removesuffix(bytes(message.get("body") or b"")))


_BODY_MESSAGES = frozenset({"http.response.body", "http.response.pathsend", "http.response.zerocopysend"})
"""The messages with the response's body. ``pathsend`` has all of it; more may follow the others."""


def body_to_keep(call: GatewayCall, headers: Iterable[Any]) -> KeptBody | CompressedBody | None:
    """Record whether the response is a stream, and return an object to keep its body if it can be read."""
    content_type = encoding = b""
    for name, value in headers:
        if len(name) == 12 and name.lower() == b"content-type":
            content_type = value.partition(b";")[0].strip().lower()
        elif len(name) == 16 and name.lower() == b"content-encoding":
            encoding = value.strip().lower()
    call.streaming = content_type in _STREAMS
    is_json = content_type == b"application/json" or content_type.endswith(b"+json")
    if not (call.streaming or (is_json and is_success(call))):
        return None
    if encoding in (b"", b"identity"):
        return KeptBody()
    return CompressedBody(encoding) if can_be_expanded(encoding) else None


_STREAMS = frozenset({b"text/event-stream", b"application/x-ndjson", b"application/vnd.amazon.eventstream"})
"""The content types of streams: most providers', Ollama's, and Bedrock's."""
