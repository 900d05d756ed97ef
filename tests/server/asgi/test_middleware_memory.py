"""What the middleware keeps in memory, in bytes."""

import asyncio
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.export import Exporter, intake
from tests.support.asgi import EVENTS, JSON, body, http_scope, start
from tests.support.server import DEADLINE_S, MemoryDestination, small_call
from tests.support.wire_samples import CHAT_USAGE, SAMPLES

KIB = 1024
PER_CALL = 300 * KIB
"""More than the bodies of a call may take: the ends of request and response, and the spans."""


@pytest.fixture(autouse=True)
def measured() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


class Busy:
    """An exporter that is busy reading a call: submitted calls wait unread until ``go_on()``."""

    def __init__(self) -> None:
        self._may_go_on = threading.Event()
        self.destination = MemoryDestination()
        self.exporter = Exporter(self.destination)

    async def begin(self) -> None:
        """Make it busy with a first call."""
        is_busy = threading.Event()

        def read(call: GatewayCall) -> None:
            is_busy.set()
            self._may_go_on.wait(DEADLINE_S)

        self.exporter.submit(small_call("busy"), read)
        assert is_busy.wait(DEADLINE_S)

    def go_on(self) -> list[Any]:
        self._may_go_on.set()
        assert self.exporter.flush(DEADLINE_S)
        return self.destination.spans


async def discard(message: Any) -> None:
    """Send to a client that keeps nothing."""


async def run(exporter: Exporter, *messages: Any, request: bytes = b"{}") -> None:
    """Serve one traced request; messages may be functions, called when it is their turn."""

    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(request), "more_body": False}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for message in messages:
            await send(message() if callable(message) else message)

    await GatewayTracingMiddleware(app, exporter)(http_scope(), receive, discard)


def grown(since: int) -> int:
    return tracemalloc.get_traced_memory()[0] - since


async def test_a_stream_of_ten_thousand_chunks():
    """Of a stream of 40 MB in 10,000 chunks only the ends are kept, at its end and at any time before."""
    busy = Busy()
    await busy.begin()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    chunks = [lambda n=n: body(b'data: {"n": %d, "text": "%s"}\n\n' % (n, b"x" * 4_000), True) for n in range(10_000)]
    overhead = grown(before)
    await run(busy.exporter, start(200, EVENTS), *chunks, *(body(c, True) for c in SAMPLES["chat stream"].chunks))
    peak = tracemalloc.get_traced_memory()[1] - before - overhead
    assert peak < PER_CALL + 100 * KIB
    attempt = busy.go_on()[-1]
    assert CHAT_USAGE["total_tokens"] == 120
    assert '"total_tokens":120' in attempt.attributes["mlflow.chat.tokenUsage"]


async def test_bodies_of_a_megabyte_that_wait():
    """A hundred calls with requests and answers of 1 MB each wait to be read, in less than 300 KB each."""
    busy = Busy()
    await busy.begin()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(100):
        document = b'{"choices": [{"message": "%s"}], "usage": {"prompt_tokens": 7}}' % (b"x" * 1_000_000)
        await run(busy.exporter, start(200, JSON), body(document), request=b'{"a": "%s"}' % (b"y" * 1_000_000))
        del document
    assert grown(before) < 100 * PER_CALL
    assert sum(span.name.startswith("provider") for span in busy.go_on()) == 100
    assert grown(before) < 100 * 20 * KIB


async def test_more_calls_wait_than_may_hold_their_bodies(monkeypatch: pytest.MonkeyPatch):
    """If the exporter falls far behind, the oldest calls drop their bodies and keep their other facts."""
    monkeypatch.setattr(intake, "MAX_UNREAD", 10)
    busy = Busy()
    await busy.begin()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(200):
        await run(busy.exporter, start(200, JSON), body(b'{"model": "m", "text": "%s"}' % (b"x" * 200_000)))
    assert grown(before) < 10 * PER_CALL + 200 * 10 * KIB
    names = [span.name for span in busy.go_on()]
    assert len([name for name in names if name.startswith("gateway/")]) == 201
    assert names.count("provider/m") == 10


async def test_a_compressed_body_that_is_too_large():
    """Nothing is kept of an endless compressed stream."""
    busy = Busy()
    await busy.begin()
    before = tracemalloc.get_traced_memory()[0]
    headers = [*EVENTS, (b"content-encoding", b"gzip")]
    await run(busy.exporter, start(200, headers), *[lambda: body(b"z" * 10_000, True)] * 1_000, body(b""))
    assert grown(before) < 50 * KIB
    busy.go_on()


async def test_requests_that_are_not_traced_leave_nothing():
    """Ten thousand requests without a traceparent leave nothing in memory."""
    exporter = Exporter(MemoryDestination())

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 1_000, "more_body": False}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(start())
        await send(body(b"y" * 1_000))

    middleware = GatewayTracingMiddleware(app, exporter)

    async def many(count: int) -> None:
        for _ in range(count):
            await middleware(http_scope([]), receive, discard)
            await asyncio.sleep(0)

    await many(100)
    before = tracemalloc.get_traced_memory()[0]
    await many(10_000)
    assert grown(before) < 20 * KIB
    assert exporter.flush(DEADLINE_S)
