"""Any ASGI gateway: one call per request, timed and told by what passes through the middleware."""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from agent_gateway_client.propagation import extract
from agent_gateway_client.server.call import CLIENT_DISCONNECT, GatewayCall, current_call
from agent_gateway_client.server.export import Exporter, Finish

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class GatewayTracingMiddleware:
    """Mirrors the calls of an ASGI gateway into their callers' traces.

    A request without a valid, sampled ``traceparent`` costs one look at its headers. The bytes of request and response
    are passed on as they are, at once.
    """

    def __init__(self, app: ASGIApp, exporter: Exporter) -> None:
        self.app = app
        self.exporter = exporter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] != "http" or not self.is_call(scope):
            await self.app(scope, receive, send)
        else:
            parent = extract(scope["headers"], strict=True)
            scope = self.application_scope(scope)
            if parent is None or not parent.sampled:
                await self.app(scope, receive, send)
            else:
                await self._mirrored(GatewayCall(parent, server_address=_address(scope)), scope, receive, send)

    def is_call(self, scope: Scope) -> bool:
        """Tell whether a request is a call of a model. To be overridden; here, every POST."""
        return bool(scope["method"] == "POST")

    def application_scope(self, scope: Scope) -> Scope:
        """Return the scope that the application gets. To be overridden; here, the same."""
        return scope

    def observe(self, call: GatewayCall, scope: Scope) -> tuple[AbstractContextManager[Any], Finish | None]:
        """Prepare to learn more of a call than HTTP tells. To be overridden.

        Returns:
            A context to run the application in, and what adds to the call after it has ended. The latter runs outside
            the request, in the exporter's thread.
        """
        return nullcontext(), None

    async def _mirrored(self, call: GatewayCall, scope: Scope, receive: Receive, send: Send) -> None:
        complete = False
        last_chunk_ns: int | None = None
        last_chunks: deque[bytes] = deque(maxlen=_LAST_CHUNKS)

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not (complete or _is_last_event(last_chunks)):
                call.end(CLIENT_DISCONNECT)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal complete, last_chunk_ns
            if message["type"] == "http.response.start":
                call.http_status = message["status"]
                call.streaming = _is_stream(message.get("headers", ()))
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
                if chunk := message.get("body"):
                    # Before it is sent: the client cannot have it earlier, so its span contains the mirror.
                    last_chunk_ns = time.time_ns()
                    if call.streaming:
                        last_chunks.append(chunk)
                        if call.time_to_first_chunk_ns is None:
                            call.time_to_first_chunk_ns = last_chunk_ns - call.start_time_ns
            await send(message)

        context, finish = self.observe(call, scope)
        token = current_call.set(call)
        try:
            with context:
                await self.app(scope, watched_receive, watched_send)
        except BaseException as error:
            if not (complete or _is_last_event(last_chunks)):
                # Some servers tell a client that has gone by an OSError from send().
                call.end(CLIENT_DISCONNECT if isinstance(error, OSError) and call.http_status else error)
            raise
        finally:
            current_call.reset(token)
            status = call.http_status or 500
            call.end(str(status) if status >= 400 else None, last_chunk_ns)
            self.exporter.submit(call, finish)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            self.exporter.shutdown()


_LAST_CHUNKS = 4
"""Chunks of a stream that are kept to tell whether it is complete: a server may split its last event."""

_LAST_EVENTS = (
    b"[DONE]",
    b"message_stop",
    b"response.completed",
    b"response.incomplete",
    b"response.failed",
    b'"finishReason"',
)
"""How the streams of OpenAI's chat, Anthropic, OpenAI's responses and Gemini end."""


def _is_last_event(chunks: Iterable[bytes]) -> bool:
    """Tell whether a stream's last event was sent. Many clients hang up as soon as they have it."""
    tail = b"".join(chunks)
    return any(event in tail for event in _LAST_EVENTS)


def _is_stream(headers: Any) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith((b"text/event-stream", b"application/x-ndjson"))
        for name, value in headers
    )


def _address(scope: Scope) -> str | None:
    server = scope.get("server")
    return f"{server[0]}:{server[1]}" if server else None
