"""The ASGI middleware and realtime websockets: one mirror per session, with the tokens of its answers."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import websockets.asyncio.client

from agent_gateway_client.server import GatewayTracingMiddleware, current_gateway_call, gateway_attempt
from tests.support.asgi import TRACED, Mirrors, http_scope
from tests.support.served import Served
from tests.support.server import SPAN_ID, TRACEPARENT, facts_of

CANARY = "c4n4ry"
CREATED = {"type": "session.created", "session": {"model": "gpt-realtime-2025-08-28", "instructions": CANARY}}


def done(read: int, written: int, cached: int = 0) -> dict[str, Any]:
    """Return the event at the end of an answer."""
    usage = {
        "total_tokens": read + written,
        "input_tokens": read,
        "output_tokens": written,
        "input_token_details": {"text_tokens": read, "audio_tokens": 0, "cached_tokens": cached},
        "output_token_details": {"text_tokens": written, "audio_tokens": 0},
    }
    output = [{"type": "message", "content": [{"type": "text", "text": f'{CANARY} "usage": 7'}]}]
    return {"type": "response.done", "response": {"status": "completed", "output": output, "usage": usage}}


def session(*events: Any, code: int | None = None, failure: Exception | None = None) -> Any:
    """Return an application that accepts a websocket, answers each message with an event, and closes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        for event in events:
            if (await receive())["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": event if isinstance(event, str) else json.dumps(event)})
        if failure is not None:
            raise failure
        if code is not None:
            await send({"type": "websocket.close", "code": code})
        while code is None and (await receive())["type"] != "websocket.disconnect":
            pass

    return app


def scope_of(path: str = "/v1/realtime", headers: Any = TRACED, query: bytes = b"model=gpt-realtime") -> dict[str, Any]:
    scope = http_scope(headers, path=path, query_string=query, type="websocket", scheme="ws")
    del scope["method"]
    return scope


async def play(app: Any, mirrors: Mirrors, scope: Any = None, goes: int | None = 1000, **options: Any) -> list[Any]:
    """Open a session, send a message for each one received, and close with a code; returns what was sent."""
    sent: list[Any] = []
    messages = iter([{"type": "websocket.connect"}, {"type": "websocket.receive", "text": CANARY}])
    last = 0

    async def receive() -> Any:
        nonlocal last
        message = next(messages, None)
        events = sum(message["type"] == "websocket.send" for message in sent)
        if message is None and events > last:
            last = events
            message = {"type": "websocket.receive", "text": CANARY}
        return message or {"type": "websocket.disconnect", "code": goes}

    async def send(message: Any) -> None:
        sent.append(message)

    await GatewayTracingMiddleware(app, mirrors.exporter, **options)(scope or scope_of(), receive, send)
    return sent


@pytest.fixture
def mirrors() -> Iterator[Mirrors]:
    made = Mirrors()
    yield made
    assert CANARY not in str([span.to_json() for span in made.spans])


async def test_one_mirror_for_a_session(mirrors: Mirrors):
    """A session is one call with the tokens of all its answers."""
    sent = await play(session(CREATED, done(10, 5, 4), done(20, 7)), mirrors, provider="openai")
    assert [message["type"] for message in sent] == ["websocket.accept", *["websocket.send"] * 3]
    gateway, attempt = mirrors.spans
    assert (gateway.name, attempt.name) == ("gateway/gpt-realtime", "provider/openai/gpt-realtime-2025-08-28")
    assert gateway.parent.span_id == SPAN_ID
    assert gateway.status.is_ok
    assert mirrors.only["http.response.status_code"] == 101
    assert facts_of(attempt)["mlflow.chat.tokenUsage"] == {
        "input_tokens": 30, "output_tokens": 12, "total_tokens": 42, "cache_read_input_tokens": 4
    }  # fmt: skip


LIVE = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"


def turn(read: int, written: int, thoughts: int) -> bytes:
    """Return the message at the end of a turn of Gemini Live, after Google's reference. Google sends bytes."""
    usage = {
        "promptTokenCount": read,
        "responseTokenCount": written,
        "thoughtsTokenCount": thoughts,
        "totalTokenCount": read + written + thoughts,
        "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": read}],
    }
    content = {"turnComplete": True, "outputTranscription": {"text": f'{CANARY} "usageMetadata"'}}
    return json.dumps({"serverContent": content, "usageMetadata": usage}).encode()


def live(*turns: bytes, setup: str = "models/gemini-live-2.5-flash", accepted: bool = True, code: int = 1000) -> Any:
    """Return a gateway for Gemini Live."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        assert (await receive())["bytes"] == setup_message(setup)
        if accepted:
            await send({"type": "websocket.send", "bytes": b'{"setupComplete": {"sessionId": "s"}}'})
        for message in turns:
            await send({"type": "websocket.send", "bytes": message})
        await send({"type": "websocket.close", "code": code})

    return app


def setup_message(model: str) -> bytes:
    return json.dumps({"setup": {"systemInstruction": {"model": CANARY}, "model": model}}).encode()


async def play_live(app: Any, mirrors: Mirrors, path: str = LIVE, setup: str = "models/gemini-live-2.5-flash") -> None:
    messages = iter([{"type": "websocket.connect"}, {"type": "websocket.receive", "bytes": setup_message(setup)}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        pass

    await GatewayTracingMiddleware(app, mirrors.exporter, provider="gemini")(scope_of(path, query=b""), receive, send)


@pytest.mark.parametrize(
    ("path", "setup"),
    [
        (LIVE, "models/gemini-live-2.5-flash"),
        (f"/gemini{LIVE}Constrained", "models/gemini-live-2.5-flash"),
        (
            "/ws/google.cloud.aiplatform.v1.LlmBidiService/BidiGenerateContent",
            "projects/p/locations/l/publishers/google/models/gemini-live-2.5-flash",
        ),
    ],
)
async def test_a_session_of_gemini_live(path: str, setup: str, mirrors: Mirrors):
    """A session is one call with the model of the first message and the tokens of all turns."""
    await play_live(live(turn(100, 20, 3), turn(140, 10, 0), setup=setup), mirrors, path, setup)
    gateway, attempt = mirrors.spans
    assert (gateway.name, attempt.name) == ("gateway/gemini-live-2.5-flash", "provider/gemini")
    assert facts_of(attempt)["mlflow.chat.tokenUsage"] == {
        "input_tokens": 240, "output_tokens": 33, "total_tokens": 273
    }  # fmt: skip
    assert mirrors.error_type is None


async def test_a_model_that_was_not_accepted(mirrors: Mirrors):
    """The model name in a rejected first message could be any text, so it is left out."""
    await play_live(live(setup=CANARY, accepted=False, code=1008), mirrors, setup=CANARY)
    assert [span.name for span in mirrors.spans] == ["gateway/realtime"]
    assert mirrors.error_type == "1008"


async def test_the_messages_pass_as_they_are(mirrors: Mirrors):
    """Texts, bytes and invalid JSON are passed on without errors."""
    events = ['{"type": "response.done", "response": ', '"response.done"', '{"type": "response.done", "response": [1]}']
    sent = await play(session(*events), mirrors)
    assert [message.get("text") for message in sent[1:]] == events
    (gateway,) = mirrors.spans
    assert gateway.name == "gateway/gpt-realtime"


@pytest.mark.parametrize(
    ("app", "goes", "error_type"),
    [
        (session(CREATED), 1000, None),
        (session(CREATED), 1001, None),
        (session(CREATED), 1006, "client_disconnect"),
        (session(CREATED, code=1000), 1000, None),
        (session(CREATED, code=1011), 1000, "1011"),
    ],
)
async def test_how_a_session_ends(app: Any, goes: int, error_type: str | None, mirrors: Mirrors):
    """A normal close is not a failure; a broken connection and a gateway that gives up are."""
    await play(app, mirrors, goes=goes)
    assert mirrors.error_type == error_type


async def test_an_application_that_fails(mirrors: Mirrors):
    """Its exception is raised, and the mirror has its class."""
    with pytest.raises(KeyError):
        await play(session(CREATED, failure=KeyError(CANARY)), mirrors)
    assert mirrors.error_type == "KeyError"


@pytest.mark.parametrize("denied", [False, True], ids=["close", "response"])
async def test_who_is_refused_leaves_nothing(denied: bool, mirrors: Mirrors):
    """A handshake that the gateway rejects is not mirrored."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if denied:
            await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close"})

    await play(app, mirrors)
    assert mirrors.spans == []


@pytest.mark.parametrize(
    "scope",
    [
        scope_of("/v1/other"),
        scope_of(headers=[]),
        scope_of(headers=[(b"traceparent", TRACEPARENT[:-2].encode() + b"00")]),
    ],
    ids=["another route", "no parent", "unsampled"],
)
async def test_what_is_left_alone(scope: Any, mirrors: Mirrors):
    """Other websockets, and callers that are not tracing, are not mirrored; the scope is passed unchanged."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        assert current_gateway_call() is None

    await play(app, mirrors, scope)
    assert seen == [scope]
    assert mirrors.spans == []


async def test_the_applications_own_attempt_and_options(mirrors: Mirrors):
    """The application's own attempt gets the tokens; may_join, endpoint and strip_trace_context apply."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["headers"] == []
        gateway_attempt("azure", "ours")
        await session(done(1, 2))(scope, receive, send)

    options: dict[str, Any] = {"endpoint": "voice", "strip_trace_context": True}
    await play(app, mirrors, **options, may_join=lambda scope: False)
    assert mirrors.spans == []
    await play(app, mirrors, **options, may_join=lambda scope: True)
    assert [span.name for span in mirrors.spans] == ["gateway/voice", "provider/azure/ours"]


async def test_a_model_that_is_a_sentence(mirrors: Mirrors):
    """The requested model is recorded only if it has the form of a name."""
    await play(session(CREATED), mirrors, scope_of(query=f"model=ignore%20{CANARY}".encode()))
    assert mirrors.spans[0].name == "gateway/realtime"


async def test_a_real_server_and_client(mirrors: Mirrors):
    """With uvicorn and the package websockets, a session with three answers has one mirror."""
    app = GatewayTracingMiddleware(session(CREATED, done(1, 2), done(3, 4)), mirrors.exporter)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan here")
        await app(scope, receive, send)

    with Served(serve, ws="websockets-sansio") as url:
        address = f"{url.replace('http', 'ws', 1)}/v1/realtime?model=gpt-realtime"
        headers = {"traceparent": TRACEPARENT}
        async with websockets.asyncio.client.connect(address, additional_headers=headers) as client:
            for _ in range(3):
                await client.send("{}")
                assert json.loads(await client.recv())
        await asyncio.to_thread(mirrors.destination.wait_for_tries, 1)
    _, attempt = mirrors.spans
    assert facts_of(attempt)["mlflow.chat.tokenUsage"]["total_tokens"] == 10
    assert mirrors.error_type is None
