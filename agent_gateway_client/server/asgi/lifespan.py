"""The lifespan of an ASGI application, which tells when the server stops."""

from collections.abc import Callable

from agent_gateway_client.server.asgi.exchange import ASGIApp, Message, Receive, Scope, Send


async def run_lifespan(
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    at_stop: Callable[[], None],
) -> None:
    """Run an application's lifespan, and ``at_stop`` before the server is told that all has stopped.

    An application that knows of no lifespan, as Django's does not, refuses the scope with an exception (ASGI, lifespan
    protocol). The server would then not tell of its stop, so here it is told that the application has one.

    Args:
        app: The application.
        scope: The lifespan's scope.
        receive: The server's messages.
        send: Takes the application's messages.
        at_stop: Is called once or twice.
    """
    begun = answered = False

    async def watched_receive() -> Message:
        nonlocal begun
        message = await receive()
        begun = True
        return message

    async def watched_send(message: Message) -> None:
        nonlocal answered
        answered = True
        if message["type"].startswith("lifespan.shutdown."):
            at_stop()
        await send(message)

    try:
        await app(scope, watched_receive, watched_send)
    except Exception:
        if answered:
            raise
        if not begun:
            await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await watched_send({"type": "lifespan.shutdown.complete"})
    finally:
        at_stop()
