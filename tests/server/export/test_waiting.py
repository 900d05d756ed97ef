"""Calls whose traces are unknown to the destination wait, bounded in number, bytes and time, and are counted."""

import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.export import Exporter, delivery, sender
from agent_gateway_client.server.export.destination import Destination, Place, TraceKey
from agent_gateway_client.server.export.waiting import WaitingCalls, pause_after, size_of
from agent_gateway_client.w3c import TraceContext
from tests.support.server import DEADLINE_S, MemoryDestination, full_call


class Knowing(MemoryDestination):
    """A destination that knows some traces, and the places of others."""

    def __init__(self, *known: int, in_workspaces: Mapping[int, str] | None = None) -> None:
        super().__init__()
        self.known = set(known)
        self.in_workspaces = in_workspaces or {}
        self.lookups = 0
        self._looked = threading.Condition()

    def locate(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, Place]:
        with self._looked:
            self.lookups += 1
            self._looked.notify_all()
            return {key: "here" for key in traces if key.trace_id in self.known}

    def find_in_other_workspaces(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, str]:
        return {key: self.in_workspaces[key.trace_id] for key in traces if key.trace_id in self.in_workspaces}

    def wait_for_lookups(self, more: int) -> None:
        with self._looked:
            until = self.lookups + more
            assert self._looked.wait_for(lambda: self.lookups >= until, DEADLINE_S)


def call_in(trace_id: int, name: str = "a") -> GatewayCall:
    return GatewayCall(TraceContext(trace_id, 7, 1), endpoint=name, start_time_ns=1, end_time_ns=2)


def test_nothing_is_stored_for_a_trace_that_is_not_known():
    """A mirror waits until its trace is known; those of other traces are stored meanwhile."""
    destination = Knowing(2)
    exporter = Exporter(destination)
    exporter.submit(call_in(1, "early"))
    exporter.submit(call_in(2, "known"))
    destination.wait_for_lookups(5)
    assert destination.names == ["gateway/known"]
    assert exporter.counts().waiting == 1
    destination.known.add(1)
    assert exporter.flush(DEADLINE_S)
    assert destination.names == ["gateway/known", "gateway/early"]


def test_a_trace_that_never_comes(logged: pytest.LogCaptureFixture):
    """A call whose trace is not known in time is dropped and counted by its reason; the warning says what to do."""
    destination = Knowing()
    exporter = Exporter(destination, wait_seconds=0.0)
    exporter.submit(call_in(1))
    assert exporter.flush(DEADLINE_S)
    assert destination.tries == []
    assert exporter.counts().dropped == {"unknown_trace": 1}
    assert [
        "sent a trace id that does not exist" in message for message in logged.messages if "dropped:" in message
    ] == [True]


def test_a_trace_in_another_workspace(monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture):
    """A trace in another workspace never appears; this is the reason in the count and the warning."""
    monkeypatch.setattr(sender, "_OTHER_WORKSPACES_SECONDS", 0.0)
    destination = Knowing(in_workspaces={1: "team-b"})
    exporter = Exporter(destination)
    exporter.submit(call_in(1))
    exporter.submit(call_in(2))
    destination.wait_for_lookups(5)
    assert exporter.counts().dropped == {"other_workspace": 1}
    assert exporter.counts().waiting == 1
    assert "another MLflow workspace" in logged.messages[0]


@pytest.mark.parametrize("bound", ["number", "bytes"])
def test_what_waits_is_bounded(bound: str):
    """Above either bound the oldest are dropped and counted."""
    destination = Knowing()
    size = size_of(call_in(1))
    bounds = {"max_waiting_calls": 10} if bound == "number" else {"max_waiting_bytes": 10 * size}
    exporter = Exporter(destination, **bounds)
    for number in range(1, 31):
        exporter.submit(call_in(number, "x"))
    deadline = time.monotonic() + DEADLINE_S
    while exporter.counts().dropped.get("queue_full", 0) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    destination.known |= set(range(1, 31))
    assert exporter.flush(DEADLINE_S)
    counts = exporter.counts()
    assert counts.dropped == {"queue_full": 20}
    assert {span.context.trace_id for span in destination.spans if span.context} == set(range(21, 31))


def test_calls_that_wait_hold_no_payload():
    """A waiting call keeps less than a twentieth of what it holds while it is served."""
    destination = Knowing()
    exporter = Exporter(destination)
    exporter.submit(call_in(1))
    destination.wait_for_lookups(2)
    tracemalloc.start()
    payload = 200_000
    for number in range(200):
        held = bytearray(payload)

        def read(call: GatewayCall, held: Any = held) -> None:
            call.endpoint = str(len(held))

        exporter.submit(full_call(parent=TraceContext(2 + number, 7, 1, "x=" + "y" * 400)), read)
        del held, read
    destination.wait_for_lookups(3)
    while len(exporter._intake):
        destination.wait_for_lookups(1)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert exporter.counts().waiting == 201
    assert grown < 200 * payload / 20
    assert grown < 200 * 4_096, "bytes of a waiting call"
    exporter.shutdown(0.0)


def test_sizes_are_about_right():
    """A call's estimated size is right within a factor of two."""
    waiting = WaitingCalls(100_000, 1 << 40)
    tracemalloc.start()
    for number in range(2_000):
        call = full_call(parent=TraceContext(number + 1, 7, 1))
        call.compact()
        assert waiting.add(call, 0.0) == []
    measured = tracemalloc.get_traced_memory()[0] / 2_000
    tracemalloc.stop()
    assert 0.5 < size_of(full_call()) / measured < 2.0, measured


def test_pauses_grow_with_the_wait():
    """A mirror is late by a tenth of its trace's duration, by at least half a second and at most half a minute."""
    assert pause_after(0.0) < 1.0
    assert pause_after(60.0) == 6.0
    assert pause_after(100_000.0) == 30.0


def test_a_stop_looks_until_its_deadline():
    """A trace that appears while the process stops gets its mirrors."""
    destination = Knowing()
    exporter = Exporter(destination)
    exporter.submit(call_in(1))
    destination.wait_for_lookups(1)
    stop = threading.Thread(target=exporter.shutdown, args=(DEADLINE_S,))
    stop.start()
    destination.wait_for_lookups(3)
    destination.known.add(1)
    stop.join(DEADLINE_S)
    assert destination.names == ["gateway/a"]
    assert exporter.dropped == 0


def test_a_stop_counts_what_it_gives_up(logged: pytest.LogCaptureFixture):
    """A mirror that still waits at the stop's deadline is lost, counted, and never stored later."""
    destination = Knowing()
    exporter = Exporter(destination)
    exporter.submit(call_in(1))
    destination.wait_for_lookups(1)
    exporter.shutdown(0.2)
    destination.known.add(1)
    assert exporter.flush(DEADLINE_S)
    assert destination.tries == []
    assert exporter.counts().dropped == {"stopped": 1}
    assert "1 mirrored calls could not be sent" in logged.messages[-1]


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 4)),
        st.tuples(st.just("take"), st.integers(1, 5)),
        st.tuples(st.just("put back"), st.floats(0.0, 3.0)),
        st.tuples(st.just("clear"), st.none()),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(actions, st.integers(1, 8))
def test_no_call_is_lost_or_doubled(steps: list[tuple[str, Any]], most: int):
    """After any adding, taking and putting back, each call is in one place, the bound holds, and traces stay whole."""
    waiting = WaitingCalls(most, 1 << 40)
    inside: set[int] = set()
    traces: dict[int, int] = {}
    taken: list[Any] = []
    added = 0
    for now, (action, argument) in enumerate(steps):
        if action == "add":
            inside.add(added)
            traces[added] = argument
            inside -= {held.number for held in waiting.add(call_in(argument), float(now))}
            added += 1
        elif action == "take":
            got = waiting.take(float(now), argument)
            assert len(got) < 2 * argument
            assert {held.number for held in got} <= inside
            inside -= {held.number for held in got}
            of_trace = Counter(held.key.trace_id for held in got)
            assert all(of_trace[trace_id] == argument for trace_id in of_trace.keys() & {traces[n] for n in inside})
            taken += got
        elif action == "put back":
            inside |= {held.number for held in taken}
            inside -= {held.number for held in waiting.put(taken, now + argument)}
            taken = []
        else:
            assert waiting.clear() == len(inside)
            inside = set()
        assert len(waiting) == len(inside) <= most
        assert (waiting.next_due() is None) is (not inside)
    assert {held.number for held in waiting.take(1e9, 10_000)} == inside
    assert len(waiting) == 0


def test_looking_up_ten_thousand_is_one_question():
    """All traces due at the same time are looked up in batches, not one by one."""
    destination = Knowing()
    exporter = Exporter(destination)
    for number in range(1, 1_001):
        exporter.submit(call_in(number))
    deadline = time.monotonic() + DEADLINE_S
    while len(exporter._waiting) < 1_000 and time.monotonic() < deadline:
        destination.wait_for_lookups(1)
    before = destination.lookups
    with exporter._sender.flushing():
        destination.wait_for_lookups(5)
    assert destination.lookups - before < 100
    exporter.shutdown(0.0)


def test_no_span_is_made_of_a_call_that_waits(monkeypatch: pytest.MonkeyPatch):
    """A look-up does not make spans: those of ten thousand waiting calls would be made again each time."""
    made = []
    mirror = delivery.mirror
    monkeypatch.setattr(delivery, "mirror", lambda call, *more: made.append(call.endpoint) or mirror(call, *more))
    destination = Knowing(2)
    exporter = Exporter(destination)
    exporter.submit(call_in(1, "early"))
    exporter.submit(call_in(2, "known"))
    destination.wait_for_lookups(5)
    assert made == ["known"]
    destination.known.add(1)
    assert exporter.flush(DEADLINE_S)
    assert made == ["known", "early"]


def test_the_more_calls_wait_the_longer_are_the_pauses():
    """Look-ups take a bounded share of the time; those of a single batch need no longer pause."""
    exporter = Exporter(Knowing())
    for number in range(1, Destination.max_batch + 1):
        exporter._waiting.add(call_in(number), now=0.0)
    outcome = delivery.Outcome(looked_up_in=0.01)
    assert exporter._sender._least_pause(outcome) == 0.0
    for number in range(Destination.max_batch + 1, 2 * Destination.max_batch + 1):
        exporter._waiting.add(call_in(number), now=0.0)
    assert exporter._sender._least_pause(outcome) == pytest.approx(0.01 / sender._LOOKUP_SHARE)
    outcome.looked_up_in = 100.0
    assert exporter._sender._least_pause(outcome) == sender._FULL_QUEUE_PAUSE_SECONDS
    exporter._waiting.clear()
