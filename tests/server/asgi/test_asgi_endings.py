"""asgi.py: how calls end, and how the server stops."""

import asyncio
import enum
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import aiohttp
import pytest
import requests

from agent_gateway_client.server import GatewayTracingMiddleware, current_gateway_call
from agent_gateway_client.server.mirror import Convention
from tests.support.asgi import EVENTS, Client, Mirrors, answering, body, http_scope, start


@pytest.fixture
def mirrors() -> Mirrors:
    """Uses OpenTelemetry's names, which distinguish a status of 200 from an unknown one."""
    return Mirrors(Convention.OTEL)


async def serve(mirrors: Mirrors, app: Any, client: Client) -> None:
    """Serve one traced request."""
    await GatewayTracingMiddleware(app, mirrors.exporter)(http_scope(), client.receive, client.send)


def knowing_its_caller(app: Any) -> Any:
    """Return an application that has authenticated its caller."""

    async def checked(scope: Any, receive: Any, send: Any) -> None:
        call = current_gateway_call()
        assert call is not None
        call.caller_is_known = True
        await app(scope, receive, send)

    return checked


def stream(*events: bytes) -> list[Any]:
    """Return the messages of a streamed answer."""
    return [start(200, EVENTS), *(body(b"data: " + event + b"\n\n", True) for event in events), body(b"")]


@pytest.mark.parametrize(
    ("status", "error"), [(200, None), (302, None), (400, "400"), (404, "404"), (429, "429"), (500, "500")]
)
async def test_the_status_tells_success(status: int, error: str | None, mirrors: Mirrors):
    """A status of 400 or more is the call's failure, with the number as the error type."""
    await serve(mirrors, knowing_its_caller(answering(start(status), body(b"canary"))), Client())
    assert mirrors.error_type == error
    assert mirrors.only["http.response.status_code"] == status


async def test_an_answer_that_never_came_is_a_failure(mirrors: Mirrors):
    """An application that returns without an answer, which servers turn into a 500, has failed."""
    await serve(mirrors, answering(), Client())
    assert mirrors.error_type == "500"


@pytest.mark.parametrize("raises", [False, True], ids=["told", "send() raises"])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
async def test_a_client_that_hangs_up_mid_stream(after: int, raises: bool, mirrors: Mirrors):
    """A client that disconnects after any chunk but the last is recorded, with the facts known so far."""
    client = Client(hang_up_after=after, raises=raises)
    try:
        await serve(mirrors, answering(*stream(b"1", b"2", b"3", b"[DONE]")), client)
    except OSError:
        assert raises
    assert mirrors.error_type == "client_disconnect"
    assert mirrors.only["http.response.status_code"] == 200
    assert after == 1 or "gen_ai.response.time_to_first_chunk" in mirrors.only


@pytest.mark.parametrize(
    "last_event",
    [
        b"[DONE]",
        b'{"type": "message_stop"}',
        b'{"type": "response.completed"}',
        b'{"type": "response.incomplete"}',
        b'{"type": "response.failed"}',
        b'{"candidates": [{"finishReason": "STOP"}]}',
    ],
)
@pytest.mark.parametrize("raises", [False, True], ids=["told", "send() raises"])
async def test_a_client_that_stops_after_the_last_event_has_not_hung_up(
    last_event: bytes, raises: bool, mirrors: Mirrors
):
    """Many clients close the connection once they have the stream's last event; the call has not failed."""
    messages = stream(b"1", b"2", last_event)
    client = Client(hang_up_after=len(messages) - 1, raises=raises)
    try:
        await serve(mirrors, answering(*messages), client)
    except OSError:
        assert raises
    assert mirrors.error_type is None


async def test_the_last_event_may_come_in_pieces(mirrors: Mirrors):
    """A server may cut an event into several chunks."""
    pieces = [start(200, EVENTS), body(b"data: 1\n\n", True), body(b"data: [DO", True), body(b"NE]\n\n", True)]
    await serve(mirrors, answering(*pieces, body(b"")), Client(hang_up_after=4))
    assert mirrors.error_type is None


@pytest.mark.parametrize("text", [b"[DONE]", b"message_stop", b"response.completed", b"finishReason"])
async def test_an_answer_may_speak_of_last_events(text: bytes, mirrors: Mirrors):
    """A model that writes about streaming APIs does not hide that the client disconnected midway."""
    said = b'{"choices": [{"delta": {"content": "' + text + b'"}}]}'
    await serve(mirrors, answering(*stream(b"1", said, b"3", b"4", b"5", b"[DONE]")), Client(hang_up_after=3))
    assert mirrors.error_type == "client_disconnect"


async def test_a_client_that_does_not_wait_for_the_answer(mirrors: Mirrors):
    """A client that disconnects before the answer has begun is recorded; the call has no status."""
    client = Client(hang_up_after=0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    await serve(mirrors, app, client)
    assert mirrors.error_type == "client_disconnect"
    assert "http.response.status_code" not in mirrors.only


async def test_the_end_of_a_complete_answer_is_no_hang_up(mirrors: Mirrors):
    """After a complete answer, servers send http.disconnect to an application that keeps receiving; nothing failed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(start())
        await send(body())
        assert (await receive())["type"] == "http.disconnect"

    await serve(mirrors, app, Client())
    assert mirrors.error_type is None


@pytest.mark.parametrize("error", [ValueError("canary"), asyncio.CancelledError("canary"), KeyboardInterrupt("canary")])
@pytest.mark.parametrize("sent", [0, 1, 2])
async def test_an_exception_is_told_by_its_class_and_goes_on(error: BaseException, sent: int, mirrors: Mirrors):
    """An exception raised before the answer is complete fails the call, and reaches the server."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in stream(b"1", b"2")[:sent]:
            await send(message)
        raise error

    with pytest.raises(type(error)) as raised:
        await serve(mirrors, app, Client())
    assert raised.value is error
    assert mirrors.error_type == type(error).__name__
    assert "canary" not in str(mirrors.only)


async def test_an_exception_after_the_answer_is_not_the_calls(mirrors: Mirrors):
    """A background task that fails after the answer does not fail the call; its exception reaches the server."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(body())
        raise ValueError("afterwards")

    with pytest.raises(ValueError, match="afterwards"):
        await serve(mirrors, app, Client())
    assert mirrors.error_type is None


@pytest.mark.parametrize(
    "error", [TimeoutError(), ConnectionResetError(), OSError(), requests.ConnectionError(), aiohttp.ClientOSError()]
)
async def test_a_providers_failure_is_not_the_clients(error: OSError, mirrors: Mirrors):
    """Network errors of HTTP clients are OSErrors too. Only one raised by send() is the client's."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in stream(b"1", b"2")[:2]:
            await send(message)
        raise error

    with pytest.raises(OSError):  # noqa: PT011
        await serve(mirrors, app, Client())
    assert mirrors.error_type == type(error).__name__


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_a_hang_up_that_the_application_handles(after: int, mirrors: Mirrors):
    """If an application handles what send() raises, or raises another exception, the client still disconnected."""

    class ClientDisconnect(Exception):
        """Like Starlette's."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            for message in stream(b"1", b"2", b"[DONE]"):
                await send(message)
        except OSError:
            raise ClientDisconnect from None

    with pytest.raises(ClientDisconnect):
        await serve(mirrors, app, Client(hang_up_after=after, raises=True))
    assert mirrors.error_type == "client_disconnect"


async def test_an_answer_that_cannot_be_delivered(mirrors: Mirrors):
    """A client that has disconnected when the answer's only chunk is sent does not have the answer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(body(b"{}"))

    with pytest.raises(OSError, match="gone"):
        await serve(mirrors, app, Client(hang_up_after=1, raises=True))
    assert mirrors.error_type == "client_disconnect"


@pytest.mark.parametrize("last", [body(b""), {"type": "http.response.pathsend", "path": "/answer.json"}])
async def test_a_background_task_after_an_answer_without_a_body(last: Any, mirrors: Mirrors):
    """The call ends with its answer, also if that is empty or is a file that the server sends."""
    ended = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ended
        await send(start())
        await send(last)
        ended = time.time_ns()

    await serve(mirrors, app, Client())
    (gateway,) = mirrors.spans
    assert gateway.end_time is not None
    assert gateway.end_time <= ended


@pytest.mark.parametrize("kind", ["pathsend", "zerocopysend"])
async def test_the_end_of_a_file_is_no_hang_up(kind: str, mirrors: Mirrors):
    """A server that sends a file sends http.disconnect afterwards, as always; nothing failed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(start())
        await send({"type": f"http.response.{kind}", "path": "/answer.json", "file": None})
        assert (await receive())["type"] == "http.disconnect"

    client = Client()
    messages = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    await GatewayTracingMiddleware(app, mirrors.exporter)(http_scope(), receive, client.send)
    assert mirrors.error_type is None


class _Status(int, enum.Enum):
    """Like http.HTTPStatus before Python 3.11, whose str() returns the member's name."""

    NOT_FOUND = 404


async def test_a_status_that_is_an_enumeration(mirrors: Mirrors):
    """Its number is the error type."""
    await serve(mirrors, knowing_its_caller(answering(start(_Status.NOT_FOUND), body(b""))), Client())
    assert mirrors.error_type == "404"


class _Broken(AbstractContextManager[None]):
    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        if self._where == "enter":
            raise RuntimeError("our own mistake")

    def __exit__(self, *error: Any) -> None:
        if self._where == "exit":
            raise RuntimeError("our own mistake")


@pytest.mark.usefixtures("guards_hold")
@pytest.mark.parametrize("where", ["observe", "enter", "exit", "finish"])
async def test_a_mistake_of_ours_does_not_fail_the_call(where: str, mirrors: Mirrors):
    """If observing a call fails, the request is still served, and mirrored with what HTTP shows."""

    class Observing(GatewayTracingMiddleware):
        def observe(self, call: Any, scope: Any) -> Any:
            if where == "observe":
                raise RuntimeError("our own mistake")

            def finish(call: Any) -> None:
                raise RuntimeError("our own mistake")

            return _Broken(where) if where in (
                "enter",
                "exit",
            ) else nullcontext(), finish if where == "finish" else None

    client = Client()
    await Observing(answering(start(), body(b"ok")), mirrors.exporter)(http_scope(), client.receive, client.send)
    assert client.content == b"ok"
    assert mirrors.error_type is None
