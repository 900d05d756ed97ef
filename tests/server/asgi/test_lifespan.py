"""lifespan.py: the start and stop of an ASGI server with the middleware."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.asgi.lifespan import run_blocking
from agent_gateway_client.server.export import Exporter
from tests.support.asgi import Client, Mirrors, answering, body, http_scope, start
from tests.support.server import DEADLINE_S, MemoryDestination, Store


def lifespan(*types: str, at_stop: Callable[[], object] = lambda: None) -> tuple[Any, Any, list[str]]:
    """Return receive, send and the sent messages of a server that starts and stops."""
    waiting = [{"type": f"lifespan.{name}"} for name in types]
    sent: list[str] = []

    async def receive() -> Any:
        if waiting[0]["type"] == "lifespan.shutdown":
            at_stop()
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    return receive, send, sent


async def test_the_servers_stop_sends_what_waits(mirrors: Mirrors):
    """The application's own lifespan runs as before; after its end no mirror waits."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await answering(start(), body())(scope, receive, send)

    middleware = GatewayTracingMiddleware(app, mirrors.exporter)
    client = Client()
    await middleware(http_scope(), client.receive, client.send)
    receive, send, sent = lifespan("startup", "shutdown")
    await middleware({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(mirrors.destination.spans) == 1


async def refuse(receive: Any, send: Any) -> None:
    """Support no lifespan, like Django."""
    raise ValueError("no lifespan here")


async def return_at_once(receive: Any, send: Any) -> None:
    """Accept the lifespan scope and return immediately."""


async def return_when_started(receive: Any, send: Any) -> None:
    """Return before the stop."""
    assert (await receive())["type"] == "lifespan.startup"
    await send({"type": "lifespan.startup.complete"})


@pytest.mark.parametrize("in_lifespan", [refuse, return_at_once, return_when_started])
async def test_an_application_without_lifespan(in_lifespan: Any):
    """An application that rejects the lifespan scope or leaves it early is started; its mirrors are sent at the stop.

    uvicorn does not announce its stop to such an application; it then ends the process with a signal.
    """
    store = Store(away=True)
    destination = MemoryDestination(store)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await in_lifespan(receive, send)
            return
        await answering(start(), body())(scope, receive, send)

    middleware = GatewayTracingMiddleware(app, Exporter(destination))
    client = Client()
    await middleware(http_scope(), client.receive, client.send)
    destination.wait_for_tries(1)
    receive, send, sent = lifespan("startup", "shutdown", at_stop=lambda: setattr(store, "away", False))
    await middleware({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(destination.spans) == 1


async def test_a_start_that_raises_is_not_reported_as_done(mirrors: Mirrors):
    """An exception after lifespan.startup was received is raised to the server."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("no database")

    receive, send, sent = lifespan("startup")
    with pytest.raises(RuntimeError, match="no database"):
        await GatewayTracingMiddleware(app, mirrors.exporter)({"type": "lifespan"}, receive, send)
    assert sent == []


async def test_a_stop_does_not_block_the_event_loop():
    """While mirrors are sent at the stop, the server's other tasks run."""
    other_task_ran = threading.Event()

    class Waiting(Exporter):
        def shutdown(self, timeout: float = 0) -> None:
            assert other_task_ran.wait(DEADLINE_S)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})

    async def other_task() -> None:
        other_task_ran.set()

    tasks = []
    receive, send, sent = lifespan(
        "startup", "shutdown", at_stop=lambda: tasks.append(asyncio.ensure_future(other_task()))
    )
    await GatewayTracingMiddleware(app, Waiting(MemoryDestination()))({"type": "lifespan"}, receive, send)
    await tasks[0]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_stop_without_asyncio():
    """In an event loop other than asyncio's, the stop runs in the loop's thread."""
    ran: list[int] = []
    with pytest.raises(StopIteration):
        run_blocking(lambda: ran.append(1)).send(None)
    assert ran == [1]


async def test_an_application_whose_start_fails(mirrors: Mirrors):
    """Its messages and its exception reach the server."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        raise RuntimeError("no database")

    receive, send, sent = lifespan("startup")
    with pytest.raises(RuntimeError, match="no database"):
        await GatewayTracingMiddleware(app, mirrors.exporter)({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.failed"]
