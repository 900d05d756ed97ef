"""One call cannot block the others: if a destination fails, the exporter narrows it down to the calls at fault."""

from collections.abc import Collection, Mapping, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.export import Destination, Refused, Unavailable, delivery
from agent_gateway_client.server.export.counts import Reason
from agent_gateway_client.server.export.delivery import Outcome, deliver
from agent_gateway_client.server.export.destination import Misconfigured, Place, TraceGone, TraceKey
from agent_gateway_client.server.export.waiting import QueuedCall
from agent_gateway_client.server.mirror import Convention, mirror
from agent_gateway_client.w3c import TraceContext
from tests.support.server import small_call


class Fussy(Destination):
    """Accepts all names except those it is told to reject. A name is a letter, the place, and a number."""

    convention = Convention.MLFLOW

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.sends = 0
        self.taken: list[str] = []

    def locate(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, Place]:
        return {key: key.workspace for key in traces}

    def send(self, spans: Sequence[ReadableSpan], place: Place = None) -> None:
        self.sends += 1
        names = [span.name.removeprefix("gateway/") for span in spans]
        for name in names:
            for prefix, error in self.errors.items():
                if name.startswith(prefix):
                    raise error
        self.taken += names


def queued(*names: str) -> list[QueuedCall]:
    found = []
    for number, name in enumerate(names):
        call = small_call(name)
        found.append(QueuedCall(call, TraceKey(1, name[0]), number, 0.0, 1))
    return found


def names(calls: Sequence[QueuedCall]) -> list[str]:
    return [str(one.call.endpoint) for one in calls]


def fates(outcome: Outcome) -> tuple[list[str], list[tuple[str, Reason]], list[str]]:
    dropped = [(str(one.call.endpoint), reason) for one, reason in outcome.dropped]
    return names(outcome.sent), dropped, names(outcome.again)


def test_batches_share_a_look_up():
    """The traces of several batches are looked up at once, and sent in batches of the destination's size."""
    looked_up, sent = [], []

    class Counting(Fussy):
        max_batch = 50

        def locate(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, Place]:
            looked_up.append(len(traces))
            return dict.fromkeys(traces, "one place")

        def send(self, spans: Sequence[ReadableSpan], place: Place = None) -> None:
            sent.append(len(spans))

    calls = queued(*(f"a{number}" for number in range(120)))
    for number, one in enumerate(calls):
        one.key = TraceKey(number)
    assert len(deliver(calls, Counting()).sent) == 120
    assert (looked_up, sent) == ([120], [50, 50, 20])


def test_calls_of_a_trace_are_sent_together():
    """Where they fit, whatever the order in which they come; each call is sent once."""
    sent: list[list[int]] = []

    class Counting(Fussy):
        max_batch = 4

        def send(self, spans: Sequence[ReadableSpan], place: Place = None) -> None:
            sent.append([span.context.trace_id for span in spans])

    calls = queued(*(f"a{number}" for number in range(15)))
    for one, trace_id in zip(calls, [1, 2, 1, 2, 3, 2, 3, 4, 4, 4, 4, 4, 4, 5, 5], strict=True):
        one.key = TraceKey(trace_id, "a")
        one.call.parent = TraceContext(trace_id, 1, 1)
    assert names(deliver(calls, Counting()).sent) == [
        f"a{n}" for n in (0, 2, 1, 3, 5, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14)
    ]
    assert sent == [[1, 1], [2, 2, 2], [3, 3], [4, 4, 4, 4], [4, 4, 5, 5]]


def test_a_call_is_kept_once(monkeypatch: pytest.MonkeyPatch):
    """Its spans cannot be made yet, and then the destination goes away with the rest of its batch."""

    def failing(call: GatewayCall, convention: Convention) -> list[ReadableSpan]:
        if call.endpoint == "a1":
            raise Refused("not yet")
        return mirror(call, convention)

    monkeypatch.setattr(delivery, "mirror", failing)
    outcome = deliver(queued("a1", "a2", "a3"), Fussy(a3=Unavailable("HTTP 503")))
    assert sorted(names(outcome.again)) == ["a1", "a2", "a3"]
    assert (outcome.sent, outcome.dropped) == ([], [])


def test_after_a_batch_that_fails_no_other_is_sent():
    """If the destination goes away between two batches, the second one and all later ones are kept."""
    destination = Fussy(c=Unavailable("HTTP 503"))
    destination.max_batch = 2
    calls = queued("a1", "a2", "c1", "a3", "a4", "a5")
    for one in calls:
        one.key = TraceKey(1, "a")
    outcome = deliver(calls, destination)
    assert fates(outcome) == (["a1", "a2"], [], ["c1", "a3", "a4", "a5"])
    assert destination.sends == 2
    assert outcome.is_away


POISON = [TypeError("canary"), Refused("400"), RuntimeError("HTTP 500")]


@pytest.mark.parametrize("error", POISON, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", [0, 1, 99, 198, 199])
def test_one_call_at_fault(error: Exception, at: int):
    """Of two hundred calls the one that the destination fails on is dropped, and all others are stored."""
    everyone = [f"a{number}" for number in range(200)]
    everyone[at] = "x"
    destination = Fussy(x=error)
    calls = queued(*everyone)
    for one in calls:
        one.key = TraceKey(1, "a")
    outcome = deliver(calls, destination)
    assert sorted(destination.taken) == sorted(set(everyone) - {"x"})
    assert fates(outcome)[1:] == ([("x", Reason.REFUSED)], [])
    assert destination.sends <= 2 * 8 + 1
    assert not outcome.is_away


def test_where_every_call_fails_alike_it_is_the_destination():
    """If a destination fails on everything, it is at fault: nothing is dropped, and calls are not sent one by one."""
    destination = Fussy(a=RuntimeError("HTTP 500"))
    outcome = deliver(queued(*(f"a{number}" for number in range(200))), destination)
    assert (outcome.sent, outcome.dropped, len(outcome.again)) == ([], [], 200)
    assert outcome.is_away
    assert outcome.trouble == "RuntimeError"
    assert destination.sends < 20


def test_bad_calls_first():
    """Three bad calls at the front look like a failing destination; sent last the next time, they are identified."""
    destination = Fussy(x=RuntimeError())
    calls = queued("x1", "x2", "x3", *(f"a{number}" for number in range(20)))
    for one in calls:
        one.key = TraceKey(1, "a")
    first = deliver(calls, destination)
    assert len(first.again) == 23
    again = sorted(first.again, key=lambda one: (one.failures, one.number))
    second = deliver(again, destination)
    assert len(second.sent) == 20
    assert [name for name, _ in fates(second)[1]] == ["x1", "x2", "x3"]


def test_a_lone_call_is_given_time():
    """A call that arrives alone may be bad, or the destination may be; it is dropped after five rejections."""
    destination = Fussy(x=Refused("400"))
    calls = queued("x")
    for _ in range(4):
        assert deliver(calls, destination).again == calls
    assert fates(deliver(calls, destination))[1] == [("x", Reason.REFUSED)]


@pytest.mark.parametrize("error", [Unavailable("HTTP 503", retry_after=7.0), ConnectionError("canary")])
def test_a_destination_that_is_away_ends_the_batch(error: Exception):
    """An error that means the destination is down stops the batch immediately; nothing is narrowed down."""
    destination = Fussy(a=error)
    outcome = deliver(queued("a1", "a2", "b1"), destination)
    assert fates(outcome) == ([], [], ["a1", "a2", "b1"])
    assert destination.sends == 1
    assert outcome.is_away
    assert outcome.retry_after == getattr(error, "retry_after", None)
    assert "canary" not in str(outcome.trouble)


def test_one_place_that_is_not_ours_to_write_to():
    """If the gateway may not write to an experiment, only the calls for that experiment wait."""
    destination = Fussy(a=Unavailable("HTTP 403", one_place=True))
    outcome = deliver(queued("a1", "b1", "a2", "c1"), destination)
    assert fates(outcome) == (["b1", "c1"], [], ["a1", "a2"])
    assert not outcome.is_away
    assert outcome.trouble == "HTTP 403"


def test_a_trace_that_is_gone():
    """A deleted trace is no reason to wait, even if it is the only one."""
    assert fates(deliver(queued("x"), Fussy(x=TraceGone("gone"))))[1] == [("x", Reason.TRACE_GONE)]


def test_a_configuration_that_cannot_work():
    """Without a destination, calls are dropped and do not fill the queue."""
    outcome = deliver(queued("a", "b"), Fussy(a=Misconfigured("ConfigurationError"), b=Misconfigured("x")))
    assert [reason for _, reason in fates(outcome)[1]] + fates(outcome)[2] == [Reason.MISCONFIGURED] * 2
