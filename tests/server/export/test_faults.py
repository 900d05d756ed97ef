"""The exporter when the machine lacks resources, and when many calls are lost at once."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent_gateway_client.server.call import Attempt, TokenUsage
from agent_gateway_client.server.export import Exporter
from tests.support.server import DEADLINE_S, MemoryDestination, Store, gateways, small_call, submit


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Let Python switch threads as often as possible, to provoke races."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_every_call_is_sent_or_counted(quick_switches: None):
    """Of calls that many threads submit to a queue that constantly overflows, none is lost uncounted."""
    destination = MemoryDestination()
    exporter = Exporter(destination, max_waiting_calls=5)
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait(DEADLINE_S)
        for index in range(500):
            exporter.submit(small_call(f"{number}-{index}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert exporter.flush(DEADLINE_S)
    assert len(set(destination.names)) == len(destination.names)
    assert exporter.dropped > 0
    assert len(destination.names) + exporter.dropped == 8 * 500


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("ending", ["flush", "shutdown"])
def test_what_a_dead_thread_left_is_sent_at_the_end(ending: str):
    """If the exporter's thread has died and no call comes any more, the end of the process sends the rest."""

    def die(names: list[str]) -> None:
        if len(destination.tries) == 1:
            raise SystemExit

    others = set(threading.enumerate())
    destination = MemoryDestination(die)
    exporter = Exporter(destination)
    submit(exporter, "a")
    destination.wait_for_tries(1)
    for thread in set(threading.enumerate()) - others:
        if thread.name == "agent-gateway-exporter":
            thread.join(DEADLINE_S)
    getattr(exporter, ending)(DEADLINE_S)
    assert destination.names == gateways("a")


def test_a_machine_without_a_thread_left_fails_no_call(
    monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
):
    """Calls wait until a thread can be started again; requests are served meanwhile, and a warning says so."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    destination = MemoryDestination()
    exporter = Exporter(destination)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        submit(exporter, "ab")
        assert not exporter.flush(0.01)
    assert "the sending thread cannot be started" in logged.text
    submit(exporter, "c")
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("abc")


def test_a_loss_at_the_end_is_counted(logged: pytest.LogCaptureFixture):
    """Calls that a stop gives up count as dropped, so sent and dropped always add up to all."""
    destination = MemoryDestination(Store(away=True))
    exporter = Exporter(destination)
    submit(exporter, "abc")
    destination.wait_for_tries(1)
    exporter.shutdown(0.01)
    assert exporter.dropped == 3
    assert "3 mirrored calls could not be sent" in logged.messages[-1]


def test_sent_waiting_and_dropped_add_up(quick_switches: None):
    """Whatever is lost, the counts add up to the number of submitted calls at any moment."""
    destination = MemoryDestination(Store(away=True))
    exporter = Exporter(destination, max_waiting_calls=100)
    start = threading.Barrier(5)
    sums: list[bool] = []

    def work() -> None:
        start.wait(DEADLINE_S)
        for _ in range(2_500):
            exporter.submit(small_call("a"))

    def look() -> None:
        start.wait(DEADLINE_S)
        for _ in range(500):
            counts = exporter.counts()
            sums.append(counts.waiting >= 0)

    threads = [threading.Thread(target=work) for _ in range(4)] + [threading.Thread(target=look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert all(sums)
    deadline = time.monotonic() + DEADLINE_S
    while exporter.counts().waiting and time.monotonic() < deadline:
        # A batch that is being tried when the first stop ends is dropped by the next one.
        exporter.shutdown(0.1)
    counts = exporter.counts()
    assert (counts.submitted, counts.sent, counts.waiting) == (10_000, 0, 0)
    assert sum(counts.dropped.values()) == 10_000


def test_what_is_counted_as_lost_was_lost():
    """A stop while the store hangs counts waiting calls as lost; those being sent count as neither sent nor lost."""
    store = Store(blocked=True)
    destination = MemoryDestination(store)
    exporter = Exporter(destination)
    submit(exporter, "a")
    destination.wait_for_tries(1)
    submit(exporter, "bcd")
    exporter.shutdown(0.2)
    counts = exporter.counts()
    assert (counts.waiting, counts.dropped) == (1, {"stopped": 3})
    store.open.set()
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("a")
    assert exporter.counts().sent == 1


@pytest.mark.parametrize(
    ("facts", "left"),
    [
        ({"usage": TokenUsage(input_tokens="12", output_tokens=3)}, {"output_tokens": 3}),  # type: ignore[arg-type]
        ({"usage": TokenUsage(input_tokens=2**63)}, {}),
        ({"usage": TokenUsage(input_tokens=-1, output_tokens=True)}, {}),
    ],
)
def test_values_that_cannot_be_stored(facts: dict[str, Any], left: dict[str, int], logged: pytest.LogCaptureFixture):
    """A number that no store accepts is left out of the mirror; one warning informs the gateway's developer."""
    destination = MemoryDestination()
    exporter = Exporter(destination)
    call = small_call("a")
    call.attempts.append(Attempt("openai", "m", start_time_ns=1, end_time_ns=2, **facts))
    exporter.submit(call)
    assert exporter.flush(DEADLINE_S)
    attributes = destination.spans[1].attributes or {}
    assert json.loads(str(attributes.get("mlflow.chat.tokenUsage", "{}"))) == left


@pytest.mark.parametrize("time_ns", [2**63, -1, "noon", 1.5])
@pytest.mark.parametrize("field", ["start_time_ns", "end_time_ns"])
def test_times_that_cannot_be_stored(time_ns: Any, field: str):
    """A time that no store accepts is replaced by one that contains the call."""
    destination = MemoryDestination()
    exporter = Exporter(destination)
    call = small_call("a")
    call.attempts.append(Attempt("openai", "m", start_time_ns=1, end_time_ns=2))
    setattr(call, field, time_ns)
    setattr(call.attempts[0], field, time_ns)
    exporter.submit(call)
    assert exporter.flush(DEADLINE_S)
    for span in destination.spans:
        assert span.start_time is not None
        assert span.end_time is not None
        assert 0 <= span.start_time <= span.end_time < 2**63
