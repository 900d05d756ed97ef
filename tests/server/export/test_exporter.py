"""The exporter: calls leave the request path, and reach the destination or are counted."""

import threading
import time
from types import SimpleNamespace

import pytest

from agent_gateway_client.server.export import Exporter, Refused, counts, sender
from agent_gateway_client.server.mirror import Convention
from tests.support.server import DEADLINE_S, MemoryDestination, Store, full_call, gateways, small_call, submit


def test_calls_arrive_in_order_and_once():
    """Submitted calls are sent, each call's spans together, in the order of the calls."""
    destination = MemoryDestination()
    exporter = Exporter(destination)
    exporter.submit(full_call())
    submit(exporter, "ab")
    assert exporter.flush(DEADLINE_S)
    assert destination.names == [
        "gateway/chat",
        "provider/openai/gpt-4o",
        "provider/anthropic/claude-3-5-haiku",
        *gateways("ab"),
    ]
    assert exporter.dropped == 0


def wait_until_queued(exporter: Exporter, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(exporter._waiting) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_calls_that_come_together_are_sent_together():
    """While one batch is being sent the next one collects calls, up to a limit."""
    store = Store(blocked=True)
    destination = MemoryDestination(store)
    exporter = Exporter(destination)
    submit(exporter, "a")
    destination.wait_for_tries(1)
    submit(exporter, "b" * (2 * destination.max_batch + 50))
    wait_until_queued(exporter, 2 * destination.max_batch + 50)
    store.open.set()
    assert exporter.flush(DEADLINE_S)
    assert [len(batch) for batch in destination.batches] == [1, destination.max_batch, destination.max_batch, 50]


def test_a_flush_maintains_everything_once():
    """A flush checks all traces after its last batch. After each batch that would take longer than the batches."""
    maintained = []

    class Maintained(MemoryDestination):
        def maintain(self, *, everything: bool = False) -> float | None:
            maintained.append(everything)
            return None

    store = Store(blocked=True)
    destination = Maintained(store)
    exporter = Exporter(destination)
    submit(exporter, "a")
    destination.wait_for_tries(1)
    submit(exporter, "b" * (3 * destination.max_batch))
    wait_until_queued(exporter, 3 * destination.max_batch)
    with exporter._sender.flushing():
        store.open.set()
        assert exporter.flush(DEADLINE_S)
    assert maintained == [False, False, False, True]


def test_the_destinations_convention_is_used():
    """The spans are made in the destination's convention."""
    destination = MemoryDestination(convention=Convention.OTEL)
    exporter = Exporter(destination)
    exporter.submit(small_call("a"))
    assert exporter.flush(DEADLINE_S)
    assert dict(destination.spans[0].attributes or {}) == {"agent_gateway.endpoint.name": "a"}


def test_submitting_does_not_wait_for_the_store():
    """While the store hangs, submit() accepts calls and does not contact the store from the request's thread."""
    store = Store(blocked=True)
    destination = MemoryDestination(store)
    exporter = Exporter(destination)
    submit(exporter, "a")
    destination.wait_for_tries(1)
    submit(exporter, "bcd")
    assert destination.tries == [gateways("a")]
    store.open.set()
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("abcd")


def test_many_threads_submit():
    """Calls from many concurrent threads all arrive, each once."""
    destination = MemoryDestination()
    exporter = Exporter(destination)
    start = threading.Barrier(20)

    def work(number: int) -> None:
        start.wait(DEADLINE_S)
        for index in range(50):
            exporter.submit(small_call(f"{number}-{index}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert exporter.flush(DEADLINE_S)
    expected = [f"gateway/{number}-{index}" for number in range(20) for index in range(50)]
    assert sorted(destination.names) == sorted(expected)


def test_a_store_that_is_away_is_tried_until_it_is_back():
    """Mirrors wait while the store is down, and arrive once when it is back."""
    store = Store(away=True)
    destination = MemoryDestination(store)
    exporter = Exporter(destination)
    submit(exporter, "a")
    destination.wait_for_tries(5)
    submit(exporter, "b")
    store.away = False
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("ab")
    assert exporter.dropped == 0


def test_only_what_the_store_rejects_is_dropped(logged: pytest.LogCaptureFixture):
    """Of a batch that the store rejects only the bad calls are lost; they are counted and a warning says so."""
    store = Store(blocked=True, rejected=("b", "d"))
    destination = MemoryDestination(store)
    exporter = Exporter(destination)
    submit(exporter, "a")
    destination.wait_for_tries(1)
    submit(exporter, "bcde")
    store.open.set()
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("ace")
    assert exporter.dropped == 2
    assert "refused" in logged.messages[0]


def test_a_rejected_call_is_counted_once():
    """If the store goes down between a rejected call and a good one, the rejected call is not counted twice."""
    destination = MemoryDestination()
    away = iter([True])

    def on_send(names: list[str]) -> None:
        if "gateway/bad" in names:
            raise Refused("it was told to")
        if next(away, False):
            raise ConnectionError

    destination = MemoryDestination(on_send)
    exporter = Exporter(destination)
    exporter.submit(small_call("bad"))
    exporter.submit(small_call("good"))
    assert exporter.flush(DEADLINE_S)
    assert destination.names == ["gateway/good"]
    assert exporter.dropped == 1


def test_too_many_calls_drop_the_oldest():
    """Above the limit the oldest waiting calls are dropped and counted; the newest arrive."""
    store = Store(blocked=True)
    destination = MemoryDestination(store)
    exporter = Exporter(destination, max_waiting_calls=3)
    submit(exporter, "a")
    destination.wait_for_tries(1)
    submit(exporter, "bcdef")
    assert exporter.dropped == 2
    store.open.set()
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("adef")


def test_a_long_absence_keeps_the_newest():
    """While the store is down for long, each call is eventually either sent, in order, or counted as dropped."""
    store = Store(away=True)
    destination = MemoryDestination(store)
    exporter = Exporter(destination, max_waiting_calls=3)
    names = [str(number) for number in range(100)]
    for name in names:
        exporter.submit(small_call(name))
        destination.wait_for_tries(int(name) // 10)
    store.away = False
    assert exporter.flush(DEADLINE_S)
    sent = [name.removeprefix("gateway/") for name in destination.names]
    # The limit holds for calls waiting to be read and those waiting to be sent; a batch being sent is extra.
    assert 0 < len(sent) <= 9
    assert sent == sorted(sent, key=int)
    assert sent[-3:] == names[-3:]
    assert exporter.dropped == len(names) - len(destination.names)


def test_calls_are_read_while_the_store_is_away():
    """A call's bodies are read and released when it comes in, not when the store is back."""
    store = Store(away=True)
    destination = MemoryDestination(store)
    exporter = Exporter(destination)
    submit(exporter, "a")
    destination.wait_for_tries(2)
    finished = threading.Event()
    exporter.submit(small_call("b"), lambda call: finished.set())
    assert finished.wait(DEADLINE_S)
    assert destination.batches == []
    store.away = False
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("ab")


@pytest.mark.parametrize("cause", ["away", "overflow", "rejected"])
def test_trouble_is_logged_once_a_minute(cause: str, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """However often a store fails, there is one warning a minute, and it does not quote the spans."""
    now = 1000.0
    monkeypatch.setattr(counts, "time", SimpleNamespace(monotonic=lambda: now, sleep=time.sleep))
    monkeypatch.setattr(sender, "FIRST_RETRY_SECONDS", 0)
    monkeypatch.setattr(sender, "LAST_RETRY_SECONDS", 0)
    store = Store(away=cause == "away", rejected=("a",) if cause == "rejected" else (), blocked=cause == "overflow")
    destination = MemoryDestination(store)
    exporter = Exporter(destination, max_waiting_calls=1 if cause == "overflow" else 100)

    def make_trouble() -> None:
        tries = len(destination.tries)
        submit(exporter, "a")
        if cause == "overflow":
            destination.wait_for_tries(tries + 1)
            submit(exporter, "aaa")
            store.open.set()
        if cause == "away":
            destination.wait_for_tries(tries + 4)
        else:
            assert exporter.flush(DEADLINE_S)
        if cause == "overflow":
            store.open.clear()

    make_trouble()
    make_trouble()
    assert len(logged.messages) == 1
    now += 59.9
    make_trouble()
    assert len(logged.messages) == 1
    now += 0.2
    make_trouble()
    assert len(logged.messages) == 2
    assert "canary" not in logged.text
    store.away = False
    store.open.set()
    assert exporter.flush(DEADLINE_S)
