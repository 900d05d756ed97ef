"""Records the facts of a realtime session from the messages between the server and the application."""

import time
from urllib.parse import parse_qs

from agent_gateway_client._guard import Guard
from agent_gateway_client.server.asgi.exchange import Message, Receive, Scope, Send
from agent_gateway_client.server.call import CLIENT_DISCONNECT, GatewayCall, TokenUsage, status_code
from agent_gateway_client.server.export import Finish
from agent_gateway_client.server.reading.bodies import KeptBody
from agent_gateway_client.server.reading.details import add_facts
from agent_gateway_client.server.reading.responses import ResponseFacts, model_name, read_response

REALTIME = "realtime"

_SWITCHING_PROTOCOLS = 101
_REFUSED = 403
"""The status that a server sends if the application closes a websocket without accepting it."""

_NORMAL = frozenset({1000, 1001, 1005})
"""The close codes of a normal end (RFC 6455, 7.4.1)."""

_EVENTS_WITH_FACTS = ('"response.done"', '"session.created"', '"session.updated"')
"""The types of the few events that have more than a piece of the answer."""


_guard = Guard("Could not read an event of a realtime session; its mirror may lack tokens")


def is_realtime(scope: Scope) -> bool:
    """Return whether an ASGI websocket is a session of OpenAI's Realtime API, below any prefix."""
    return str(scope["path"]).removesuffix("/").endswith(f"/{REALTIME}")


class Session:
    """Passes on the messages of one websocket without changes or delay, and records the facts of its call.

    Args:
        call: The call, which lasts as long as the session.
        receive: ASGI's.
        send: ASGI's.
    """

    __slots__ = ("_call", "_model", "_receive", "_send", "_usage")

    def __init__(self, call: GatewayCall, receive: Receive, send: Send) -> None:
        self._call = call
        self._receive = receive
        self._send = send
        self._usage: TokenUsage | None = None
        self._model: str | None = None

    async def receive(self) -> Message:
        """ASGI's ``receive`` for the application."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._call.end(None if message.get("code", 1005) in _NORMAL else CLIENT_DISCONNECT)
        return message

    async def send(self, message: Message) -> None:
        """ASGI's ``send`` for the application."""
        kind, call = message["type"], self._call
        if kind == "websocket.accept":
            call.http_status = _SWITCHING_PROTOCOLS
        elif kind == "websocket.http.response.start":
            call.http_status = status_code(message["status"])
        elif kind == "websocket.close":
            code = message.get("code", 1000)
            if call.http_status is None:
                call.http_status = _REFUSED
            else:
                call.end(None if code in _NORMAL else str(code))
        try:
            await self._send(message)
        except OSError:
            call.end(CLIENT_DISCONNECT)
            raise
        if kind == "websocket.send" and isinstance(text := message.get("text"), str):
            self._read(text)

    def finish(self, scope: Scope, provider: str | None) -> Finish:
        """Return a function that adds the session's facts to its call.

        Args:
            scope: The session's ASGI scope.
            provider: The provider's name, if the gateway does not know it.
        """
        facts = ResponseFacts(self._model, self._usage)
        asked = parse_qs(bytes(scope.get("query_string", b"")).decode("latin-1")).get("model", [None])[0]

        def finish(call: GatewayCall) -> None:
            call.endpoint = call.endpoint or model_name(asked) or REALTIME
            add_facts(call, facts, provider)

        return finish

    def _read(self, text: str) -> None:
        # After it was sent, and only for a few of the events.
        if not any(name in text for name in _EVENTS_WITH_FACTS):
            return
        with _guard:
            body = KeptBody()
            body.add(text.encode())
            facts = read_response(body, streaming=False)
            self._model = self._model or facts.model
            self._usage = _sum(self._usage, facts.usage)


def end(call: GatewayCall) -> None:
    """End a session whose application has returned without closing it."""
    status = call.http_status or 500
    call.end(str(status) if status >= 400 else None, time.time_ns())


def _sum(one: TokenUsage | None, other: TokenUsage | None) -> TokenUsage | None:
    if one is None or other is None:
        return one or other
    sums = {}
    for name in TokenUsage.__slots__:
        counts = [count for usage in (one, other) if (count := getattr(usage, name)) is not None]
        sums[name] = sum(counts) if counts else None
    return TokenUsage(**sums)
