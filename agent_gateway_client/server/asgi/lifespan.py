"""The lifespan of an ASGI application, by which a server says that it stops."""

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
    """Run an application's lifespan, and ``at_stop`` before the server hears that all has stopped.

    A server does not announce its stop to an application that has no lifespan: one that refuses the scope with an
    exception, as Django's does, or that returns at once. For those, this function answers the server. An exception
    after the application has received ``lifespan.startup`` is a failed start and goes on to the server.

    Args:
        app: The application.
        scope: The lifespan's scope.
        receive: Returns the server's messages.
        send: Takes the application's messages.
        at_stop: Called once. It may block for seconds, so it runs in a thread.
    """
    lifespan = _Lifespan(receive, send, at_stop)
    try:
        try:
            await app(scope, lifespan.receive, lifespan.send)
        except Exception:
            if lifespan.received or lifespan.sent:
                raise
            logger.debug("The application refuses the lifespan scope; it is run without one", exc_info=True)
        await lifespan.finish()
    except GeneratorExit:
        lifespan.stop_without_awaiting()
        raise
    except BaseException:
        await lifespan.stop()
        raise


class _Lifespan:
    """The messages of one lifespan, and which of them the application has received and sent.

    Attributes:
        received: The types of the messages that the application has received.
        sent: The types of those that it has sent.
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
        """Take part in the rest of the lifespan for an application that has returned from it."""
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
        """Do the same in a coroutine that is being closed."""
        if not self._stopped:
            self._stopped = True
            self._at_stop()


async def run_blocking(function: Callable[[], None]) -> None:
    """Run a function that may block for seconds; in a thread, so that the event loop goes on.

    Under another event loop than asyncio's, or when its threads have ended, the function is called directly.
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
