"""Memory and threads of the companion under load; more load with NIGHTLY."""

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from agent_gateway_client.server import GatewayTracingMiddleware, gateway_attempt
from agent_gateway_client.server.call import MAX_ATTEMPTS, GatewayCall
from agent_gateway_client.server.export import Exporter
from tests.support.asgi import EVENTS, body, http_scope, start
from tests.support.nightly import amount
from tests.support.server import DEADLINE_S, PARENT, MemoryDestination, Store, ids_of

KIB = 1024
STREAMS = amount(1_000, 10_000)
CALLS = amount(300, 3_000)


@pytest.fixture(autouse=True)
def measured() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_many_streams_at_once():
    """Each of 10,000 open streams has a bounded state and no thread; all are mirrored when they have ended."""
    destination = MemoryDestination()
    exporter = Exporter(destination)
    under_way = 0
    go_on, all_there = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal under_way
        await send(start(200, EVENTS))
        for number in range(20):
            await send(body(b'data: {"number": %d, "text": "%s"}\n\n' % (number, b"x" * 100), more=True))
        under_way += 1
        if under_way == STREAMS:
            all_there.set()
        await go_on.wait()
        await send(body(b"data: [DONE]\n\n"))

    async def receive() -> Any:
        raise AssertionError("nobody receives")

    async def discard(message: Any) -> None:
        pass

    middleware = GatewayTracingMiddleware(app, exporter)

    async def serve(served: Any) -> int:
        nonlocal under_way
        under_way = 0
        before, threads = held(), threading.active_count()
        tasks = [
            asyncio.create_task(
                served(http_scope([(b"traceparent", b"00-%032x-%016x-01" % (number, number))]), receive, discard)
            )
            for number in range(1, STREAMS + 1)
        ]
        await asyncio.wait_for(all_there.wait(), 4 * DEADLINE_S)
        grown = held() - before
        assert threading.active_count() == threads
        go_on.set()
        await asyncio.gather(*tasks)
        go_on.clear()
        all_there.clear()
        return grown

    without = await serve(app)
    with_it = await serve(middleware)
    # The chunks and the call; the rest of a stream's state belongs to the server and the application.
    assert (with_it - without) / STREAMS < 20 * (100 + 150) + 4 * KIB
    assert exporter.flush(DEADLINE_S)
    gateways = [span for span in destination.spans if span.name.startswith("gateway/")]
    assert sorted(ids_of(span)[1] for span in gateways) == list(range(1, STREAMS + 1))
    assert exporter.dropped == 0


async def test_attempts_without_end():
    """A call that retries forever keeps the first attempts; those left out take no memory."""
    destination = MemoryDestination()
    exporter = Exporter(destination)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        before = held()
        for _ in range(20_000):
            gateway_attempt(provider="openai", model="m").end("503")
        assert held() - before < MAX_ATTEMPTS * 2 * KIB
        await send(start(503, []))
        await send(body(b""))

    async def nothing(*message: Any) -> Any:
        pass

    await GatewayTracingMiddleware(app, exporter)(http_scope(), nothing, nothing)
    assert exporter.flush(DEADLINE_S)
    assert [span.name for span in destination.spans[1:]] == ["provider/openai/m"] * MAX_ATTEMPTS


def test_calls_that_wait_do_not_keep_their_tracestate():
    """While the store is down, a caller cannot fill the memory with a tracestate of 8 KB per call."""
    store = Store(away=True)
    destination = MemoryDestination(store)
    finished = threading.Semaphore(0)
    exporter = Exporter(destination)

    def add(count: int) -> None:
        for number in range(count):
            state = f"k{number}=" + "v" * 8_000
            call = GatewayCall(PARENT._replace(tracestate=state), endpoint="chat", start_time_ns=1, end_time_ns=2)
            exporter.submit(call, lambda call: finished.release() and None)
        for _ in range(count):
            assert finished.acquire(timeout=DEADLINE_S)

    add(10)
    before = held()
    add(CALLS)
    # The last one may still be being sent.
    assert held() - before < CALLS * 6 * KIB + 64 * KIB
    store.away = False
    assert exporter.flush(DEADLINE_S)
    assert len(destination.names) == CALLS + 10
