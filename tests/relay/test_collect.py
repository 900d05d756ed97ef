"""How long spans are held, and that the number of held spans is bounded."""

import pytest

from agent_gateway_client.relay.collect import Collection
from agent_gateway_client.relay.limits import Limits
from tests.support.otlp_spans import UNKNOWN, Clock, attempt, engine, read, root, span

LIMITS = Limits(spans=100, trace_spans=20)
SETTLE, WAIT, CALL = LIMITS.settle_seconds, LIMITS.wait_seconds, LIMITS.call_seconds


class Held:
    """A collection with a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.collection = Collection(LIMITS, self.clock)

    def take(self, *spans: object, after: float = 0.0) -> list[list[int]]:
        """Add spans and let time pass; return the attempt ids of each call that is complete."""
        self.collection.add(read(spans))  # type: ignore[arg-type]
        return self.wait(after)

    def wait(self, seconds: float) -> list[list[int]]:
        """Let time pass; return the attempt ids of each call that is complete."""
        self.clock.now += seconds
        return [[one.span_id for one in call.attempts] for call in self.collection.due()]


@pytest.fixture
def held() -> Held:
    """An empty collection."""
    return Held()


def test_a_call_is_complete_when_its_root_has_settled(held: Held):
    """Earlier, spans of the same call may still be in the next batch."""
    assert held.take(root(1), after=SETTLE / 2) == []
    assert held.take(attempt(2), after=SETTLE / 4) == []
    assert held.wait(SETTLE / 4) == [[2]]
    assert held.wait(WAIT) == []


def test_a_call_that_takes_long(held: Held):
    """A failed attempt and the gateway's other spans may arrive minutes before the root."""
    assert held.take(span(10, 1, "dependencies"), attempt(2, 10, failed=True), after=CALL / 2) == []
    assert held.take(attempt(3, 10), root(1), after=SETTLE) == [[2, 3]]


def test_pieces_that_come_late(held: Held):
    """A mirrored call is mirrored again, in full, when another of its attempts arrives."""
    assert held.take(root(1), attempt(2), after=SETTLE) == [[2]]
    assert held.take(attempt(3, at=1), after=SETTLE) == [[2, 3]]


def test_the_same_batch_again(held: Held):
    """A client that got no answer retries; nothing is mirrored twice."""
    assert held.take(root(1), attempt(2), after=SETTLE) == [[2]]
    assert held.take(root(1), attempt(2), after=SETTLE) == []


def test_an_engine_waits_for_its_attempt(held: Held):
    """A model server ends first; its span is mirrored together with the attempt."""
    held.take(engine(4, 2), after=WAIT / 2)
    held.collection.add(read([root(1), attempt(2)]))
    held.clock.now += SETTLE
    (call,) = held.collection.due()
    assert [run.parent_span_id for run in call.engine_runs] == [2]


def test_an_engine_alone(held: Held):
    """If the gateway's spans go elsewhere, the model server's span is mirrored alone after the wait."""
    held.take(engine(4, 2), after=WAIT / 2)
    held.clock.now += WAIT / 2
    (call,) = held.collection.due()
    assert call.mirrored_elsewhere


def test_everything_is_forgotten(held: Held):
    """After its time, nothing of a span is left, mirrored or not."""
    held.take(root(1), attempt(2), span(3, 9), attempt(4, 9), span(5, 0), engine(6, 7), after=SETTLE)
    held.wait(CALL)
    held.wait(CALL)
    assert held.collection.held == 0
    assert held.collection.next_due() is None
    assert held.collection.counts["orphaned"] == 1


def test_one_trace_is_bounded(held: Held):
    """If a trace has too many spans, the rest are dropped and counted."""
    held.take(root(1), *(attempt(number) for number in range(2, 40)))
    assert held.collection.held == LIMITS.trace_spans
    assert held.collection.counts["dropped"] == 39 - LIMITS.trace_spans


def test_a_full_collection_has_no_room(held: Held):
    """No more spans are accepted while all held spans are recent."""
    for number in range(5):
        held.take(*(span(one, 1000, trace=number + 1) for one in range(1, 21)))
    assert not held.collection.has_room()
    assert held.collection.counts["dropped"] == 0


def test_room_is_made_of_what_is_unfinished_and_old(held: Held):
    """Spans whose root never arrives block others for no longer than the wait."""
    for number in range(5):
        held.take(*(span(one, 1000, trace=number + 1, flags=UNKNOWN) for one in range(1, 21)))
    held.clock.now += WAIT + 1
    assert held.collection.has_room()
    assert held.collection.held == 80
    assert held.collection.counts["dropped"] == 20
