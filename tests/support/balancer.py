"""Several servers behind one address: each request goes to the next server, as with a load balancer."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.e2e import DEADLINE_S

_HOP_BY_HOP = {"connection", "content-length", "date", "host", "server", "transfer-encoding"}


class Balancer:
    """A running balancer.

    Attributes:
        url: Its address.
        sent: The number of requests to each server.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent: Counter[str] = Counter()


@contextmanager
def balancer(servers: Sequence[str]) -> Iterator[Balancer]:
    """Run a balancer on a free port of loopback.

    Args:
        servers: Their addresses, without a path.
    """
    turns = itertools.cycle(servers)

    async def forward(request: Request) -> Response:
        server = next(turns)
        balanced.sent[server] += 1
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP_BY_HOP]
        answer = await client.request(
            request.method, f"{server}{request.url.path}", content=await request.body(), headers=headers
        )
        kept: dict[str, Any] = {name: text for name, text in answer.headers.items() if name not in _HOP_BY_HOP}
        return Response(answer.content, answer.status_code, kept)

    client: httpx.AsyncClient

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        nonlocal client
        async with httpx.AsyncClient(timeout=DEADLINE_S, trust_env=False) as client:
            yield

    app = Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])], lifespan=running)
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, port=0, loop="asyncio", log_level="warning"))
    thread = threading.Thread(target=uvicorn_server.run, daemon=True)
    thread.start()
    while not uvicorn_server.started:
        time.sleep(0.01)
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    balanced = Balancer(f"http://127.0.0.1:{port}")
    try:
        yield balanced
    finally:
        uvicorn_server.should_exit = True
        thread.join(DEADLINE_S)
