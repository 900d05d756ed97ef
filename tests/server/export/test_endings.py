"""The exporter: flush, shutdown, and failures of calls that are finished in the exporter's thread."""

import threading

import pytest

from agent_gateway_client.server.call import Attempt, GatewayCall
from agent_gateway_client.server.export import Exporter, sender
from tests.support.server import DEADLINE_S, MemoryDestination, Store, gateways, small_call, submit


def test_flushing_nothing_needs_no_thread():
    """An exporter without calls is flushed immediately, and starts no thread."""
    before = threading.active_count()
    exporter = Exporter(MemoryDestination())
    assert exporter.flush(0)
    exporter.shutdown(0)
    assert threading.active_count() == before


def test_flush_tells_that_it_did_not_succeed():
    """flush() returns False after its timeout, and waiting calls are kept."""
    store = Store(away=True)
    destination = MemoryDestination(store)
    exporter = Exporter(destination)
    submit(exporter, "a")
    assert not exporter.flush(0.01)
    store.away = False
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("a")


def test_shutdown_sends_what_waits(logged: pytest.LogCaptureFixture):
    """After a clean stop nothing waits, nothing was lost, and nothing is logged."""
    destination = MemoryDestination()
    exporter = Exporter(destination)
    submit(exporter, "abc")
    exporter.shutdown(DEADLINE_S)
    assert destination.names == gateways("abc")
    assert logged.messages == []


def test_shutdown_says_what_is_lost(logged: pytest.LogCaptureFixture):
    """A stop while the store is down ends, and says how many calls are lost."""
    destination = MemoryDestination(Store(away=True))
    exporter = Exporter(destination)
    submit(exporter, "abc")
    destination.wait_for_tries(1)
    exporter.shutdown(0.01)
    assert "3 mirrored calls could not be sent" in logged.messages[-1]


def test_finish_adds_to_the_call_outside_the_request():
    """finish() runs in the exporter's thread after the call has ended, and its facts are mirrored."""
    destination = MemoryDestination()
    exporter = Exporter(destination)
    threads: list[threading.Thread] = []

    def finish(call: GatewayCall) -> None:
        threads.append(threading.current_thread())
        call.add(Attempt(provider="openai", model="gpt-4o-mini"))

    exporter.submit(small_call("a"), finish)
    assert exporter.flush(DEADLINE_S)
    assert threads[0] is not threading.current_thread()
    assert destination.names == ["gateway/a", "provider/openai/gpt-4o-mini"]


@pytest.mark.usefixtures("guards_hold")
def test_a_finish_that_raises_costs_only_its_details(logged: pytest.LogCaptureFixture):
    """A call whose details cannot be read is mirrored without them; one warning has only the error's class."""
    destination = MemoryDestination()
    exporter = Exporter(destination)

    def finish(call: GatewayCall) -> None:
        raise KeyError("canary")

    for name in "abc":
        exporter.submit(small_call(name), finish)
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("abc")
    assert exporter.dropped == 0
    assert ["KeyError" in message for message in logged.messages] == [True]
    assert "canary" not in logged.text


@pytest.mark.parametrize("where", ["submitted", "finished"])
def test_a_call_of_which_no_spans_can_be_made_is_dropped(where: str):
    """Gateway code may put anything into a call; if no spans can be made of it, it is dropped; all others arrive."""
    destination = MemoryDestination()
    exporter = Exporter(destination)
    bad = small_call("bad")

    def spoil(call: GatewayCall) -> None:
        call.endpoint = 5  # type: ignore[assignment]

    if where == "submitted":
        spoil(bad)
    exporter.submit(small_call("a"))
    exporter.submit(bad, spoil if where == "finished" else None)
    exporter.submit(small_call("b"))
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("ab")
    assert exporter.dropped == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_replaced():
    """If the exporter's thread has died, the next call starts another, which also sends the rest."""

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
    submit(exporter, "b")
    assert exporter.flush(DEADLINE_S)
    assert destination.names == gateways("ab")


def test_a_call_after_a_quiet_time_is_sent_at_once(monkeypatch: pytest.MonkeyPatch):
    """It may be the last of its trace, and MLflow sums up its tokens only until the client has ended the trace."""
    monkeypatch.setattr(sender, "BATCH_SECONDS", 3_600.0)
    destination = MemoryDestination()
    submit(Exporter(destination), "a")
    destination.wait_for_tries(1)
    assert destination.tries == [gateways("a")]
