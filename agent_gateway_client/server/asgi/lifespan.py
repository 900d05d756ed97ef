"""Runs an ASGI application's lifespan, and a function when the server stops."""

import asyncio
from collections.abc import Callable

from agent_gateway_client._log import logger
from agent_gateway_client.server.asgi.exchange import ASGIApp, Message, Receive, Scope, Send


async def run_lifespan(
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    at_stop: Callable[[], None],
) -> None:
    """Run an application's lifespan, and ``at_stop`` before the shutdown is reported as complete.

    A server does not announce its stop to an application without a lifespan: one that raises, as Django does, or
    returns immediately. This function answers the server for those. An exception after the application has received
    ``lifespan.startup`` is a failed start and is raised.

    Args:
        app: The application.
        scope: The lifespan's scope.
        receive: ASGI's.
        send: ASGI's.
        at_stop: Called once, in a thread because it may block for seconds.
    """
    lifespan = _Lifespan(receive, send, at_stop)
    try:
        try:
            await app(scope, lifespan.receive, lifespan.send)
        except Exception:
            if lifespan.received or lifespan.sent:
                raise
            logger.debug("The application does not support the lifespan; it runs without one", exc_info=True)
        await lifespan.finish()
    except GeneratorExit:
        lifespan.stop_without_awaiting()
        raise
    except BaseException:
        await lifespan.stop()
        raise


class _Lifespan:
    """Records the messages of one lifespan.

    Attributes:
        received: The types of the messages that the application has received.
        sent: The types of the messages that it has sent.
    """

    def __init__(self, receive: Receive, send: Send, at_stop: Callable[[], None]) -> None:
        self.received: set[str] = set()
        self.sent: set[str] = set()
        self._receive = receive
        self._send = send
        self._at_stop = at_stop
        self._stopped = False

    async def receive(self) -> Message:
        """ASGI's ``receive`` for the application."""
        message = await self._receive()
        self.received.add(message["type"])
        return message

    async def send(self, message: Message) -> None:
        """ASGI's ``send`` for the application."""
        self.sent.add(message["type"])
        if message["type"].startswith("lifespan.shutdown."):
            await self.stop()
        await self._send(message)

    async def finish(self) -> None:
        """Answer the rest of the lifespan for an application that has returned early."""
        if "lifespan.startup.failed" not in self.sent:
            if "lifespan.startup" not in self.received:
                await self.receive()
            if "lifespan.startup.complete" not in self.sent:
                await self.send({"type": "lifespan.startup.complete"})
            if "lifespan.shutdown" not in self.received:
                await self.receive()
                await self.send({"type": "lifespan.shutdown.complete"})
        await self.stop()

    async def stop(self) -> None:
        """Call ``at_stop``, the first time."""
        if not self._stopped:
            self._stopped = True
            await run_blocking(self._at_stop)

    def stop_without_awaiting(self) -> None:
        """Call ``at_stop`` in a coroutine that is being closed."""
        if not self._stopped:
            self._stopped = True
            self._at_stop()


async def run_blocking(function: Callable[[], None]) -> None:
    """Run a function that may block for seconds in a thread.

    In an event loop other than asyncio's, or if no thread can be started, the function is called directly.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        function()
        return
    called = False

    def call() -> None:
        nonlocal called
        called = True
        function()

    try:
        await asyncio.to_thread(call)
    except RuntimeError:
        if called:
            raise
        # "cannot schedule new futures after shutdown", or the process can start no more threads.
        function()
