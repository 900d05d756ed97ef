"""lifespan.py: the start and the stop of an ASGI server, under the middleware."""

from collections.abc import Callable
from typing import Any

import pytest

from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.export import Exporter
from tests.support.asgi import Client, Mirrors, answering, body, http_scope, start
from tests.support.server import MemoryDestination, Store


@pytest.fixture
def mirrors() -> Mirrors:
    return Mirrors()


def lifespan(*types: str, at_stop: Callable[[], object] = lambda: None) -> tuple[Any, Any, list[str]]:
    """Return receive, send and what was sent, of a server that starts and stops."""
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
    """The application's own lifespan runs as before; after its end no mirror waits any more."""

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


@pytest.mark.parametrize("asks_first", [False, True])
async def test_an_application_without_lifespan(asks_first: bool):
    """One that refuses the lifespan scope, as Django's does, is started, and its mirrors are sent at the stop.

    uvicorn does not tell an application of its stop that has refused, and then ends the process by a signal.
    """
    store = Store(away=True)
    destination = MemoryDestination(store)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if asks_first:
                await receive()
            raise ValueError("no lifespan here")
        await answering(start(), body())(scope, receive, send)

    middleware = GatewayTracingMiddleware(app, Exporter(destination))
    client = Client()
    await middleware(http_scope(), client.receive, client.send)
    destination.wait_for_tries(1)
    receive, send, sent = lifespan("startup", "shutdown", at_stop=lambda: setattr(store, "away", False))
    await middleware({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(destination.spans) == 1


async def test_an_application_whose_start_fails(mirrors: Mirrors):
    """What it says and raises goes through to the server."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        raise RuntimeError("no database")

    receive, send, sent = lifespan("startup")
    with pytest.raises(RuntimeError, match="no database"):
        await GatewayTracingMiddleware(app, mirrors.exporter)({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.failed"]
