"""Records the facts of a realtime session from the messages between the server and the application."""

import time
from urllib.parse import parse_qs

from agent_gateway_client._guard import Guard
from agent_gateway_client.server.asgi.exchange import Message, Receive, Scope, Send
from agent_gateway_client.server.call import CLIENT_DISCONNECT, GatewayCall, Operation, TokenUsage, status_code
from agent_gateway_client.server.export import Finish
from agent_gateway_client.server.reading.bodies import KeptBody
from agent_gateway_client.server.reading.details import add_facts
from agent_gateway_client.server.reading.json_ends import first_members
from agent_gateway_client.server.reading.responses import ResponseFacts, model_name, read_response

REALTIME = "realtime"

_SWITCHING_PROTOCOLS = 101
_REFUSED = 403
"""The status that a server sends if the application closes a websocket without accepting it."""

_NORMAL = frozenset({1000, 1001, 1005})
"""The close codes of a normal end (RFC 6455, 7.4.1)."""

_EVENTS_WITH_FACTS = (
    *(b'"response.done"', b'"session.created"', b'"session.updated"'),
    *(b'"setupComplete"', b'"usageMetadata"'),
)
"""What only the few events of OpenAI and of Gemini contain that have more than a piece of the answer."""

_LIVE = "BidiGenerateContent"

_guard = Guard("Could not read an event of a realtime session; its mirror may lack tokens")


def session_operation(scope: Scope) -> Operation | None:
    """Return the operation of a session of OpenAI's Realtime API or Gemini's Live API, below any prefix.

    ``None`` if the ASGI websocket is something else. Gemini's paths end with ``.GenerativeService.BidiGenerateContent``
    and Vertex AI's with ``.LlmBidiService/BidiGenerateContent``.
    """
    last = str(scope["path"]).removesuffix("/").rpartition("/")[2]
    if last == REALTIME:
        return "chat"
    return "generate_content" if last.removesuffix("Constrained").endswith(_LIVE) else None


class Session:
    """Passes on the messages of one websocket without changes or delay, and records the facts of its call.

    Args:
        call: The call, which lasts as long as the session.
        receive: ASGI's.
        send: ASGI's.
    """

    __slots__ = ("_call", "_is_set_up", "_model", "_receive", "_requested", "_send", "_usage")

    def __init__(self, call: GatewayCall, receive: Receive, send: Send) -> None:
        self._call = call
        self._receive = receive
        self._send = send
        self._usage: TokenUsage | None = None
        self._model: str | None = None
        # The model in Gemini's first message. OpenAI's is in the query.
        self._requested: str | None = None
        # Whether the provider has accepted the session, and with it the model.
        self._is_set_up = False

    async def receive(self) -> Message:
        """ASGI's ``receive`` for the application."""
        message = await self._receive()
        if message["type"] == "websocket.receive" and not self._is_set_up and self._requested is None:
            with _guard:
                self._requested = _model_of_setup(_content(message))
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
        if kind == "websocket.send":
            self._read(_content(message))

    def finish(self, scope: Scope, provider: str | None) -> Finish:
        """Return a function that adds the session's facts to its call.

        Args:
            scope: The session's ASGI scope.
            provider: The provider's name, if the gateway does not know it.
        """
        facts = ResponseFacts(self._model, self._usage)
        query = parse_qs(bytes(scope.get("query_string", b"")).decode("latin-1"))
        requested = (self._requested or query.get("model", [None])[0]) if self._is_set_up else None

        def finish(call: GatewayCall) -> None:
            call.endpoint = call.endpoint or model_name(requested) or REALTIME
            add_facts(call, facts, provider)

        return finish

    def _read(self, content: bytes) -> None:
        # After it was sent, and only for a few of the events.
        if not any(name in content for name in _EVENTS_WITH_FACTS):
            return
        self._is_set_up = True
        with _guard:
            body = KeptBody()
            body.add(content)
            facts = read_response(body, streaming=False)
            self._model = self._model or facts.model
            self._usage = _sum(self._usage, facts.usage)


def end(call: GatewayCall) -> None:
    """End a session whose application has returned without closing it."""
    status = call.http_status or 500
    call.end(str(status) if status >= 400 else None, time.time_ns())


def _content(message: Message) -> bytes:
    """Return the content of a message. Google's server sends JSON in binary messages."""
    text = message.get("text")
    return text.encode("utf-8", "replace") if isinstance(text, str) else message.get("bytes") or b""


def _model_of_setup(content: bytes) -> str | None:
    """Return the last part of the model's resource name in the first message of a Gemini client."""
    if b'"setup"' not in content[:_START]:
        return None
    members = first_members(content[:_START].decode("utf-8", "replace"), ("model",))
    names = [value for depth, _, value in members if depth == 2]
    return model_name(names[0].rpartition("/")[2]) if names and isinstance(names[0], str) else None


_START = 64 * 1024
"""Bytes of a session's first message in which the model is looked for."""


def _sum(one: TokenUsage | None, other: TokenUsage | None) -> TokenUsage | None:
    if one is None or other is None:
        return one or other
    sums = {}
    for name in TokenUsage.__slots__:
        counts = [count for usage in (one, other) if (count := getattr(usage, name)) is not None]
        sums[name] = sum(counts) if counts else None
    return TokenUsage(**sums)
