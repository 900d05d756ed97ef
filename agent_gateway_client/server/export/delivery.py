"""Sends calls to a destination in batches, and finds the calls that it refuses."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from opentelemetry.sdk.trace import ReadableSpan

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.server.export.counts import Reason
from agent_gateway_client.server.export.destination import (
    Destination,
    ExportError,
    Misconfigured,
    Place,
    Refused,
    TraceGone,
    TraceKey,
    Unavailable,
)
from agent_gateway_client.server.export.waiting import QueuedCall
from agent_gateway_client.server.mirror import mirror

_FAILURES_THAT_TELL = 3
"""Calls that fail one after the other, each sent alone, until the destination is considered at fault."""

_MAX_REFUSALS = 5
"""How often a call is refused before it is dropped, while no other call shows that the destination works."""


@dataclass
class Outcome:
    """The outcome of a delivery. Each call is in one of the lists.

    Attributes:
        sent: Calls that the destination accepted.
        unknown: Calls whose traces the destination does not know yet.
        dropped: Calls that will never be sent, with the reason.
        again: Calls to send again.
        trouble: Why not all were sent, an error's kind or a status; ``None`` if the destination works.
        is_away: Whether the destination accepts nothing, so that sending other calls is useless.
        retry_after: The destination's ``Retry-After``, in seconds.
        looked_up_in: The duration of the look-up of the traces, in seconds.
        rejected_spans: Spans that the destination rejected in requests that it accepted.
    """

    sent: list[QueuedCall] = field(default_factory=list)
    unknown: list[QueuedCall] = field(default_factory=list)
    dropped: list[tuple[QueuedCall, Reason]] = field(default_factory=list)
    again: list[QueuedCall] = field(default_factory=list)
    trouble: str | None = None
    is_away: bool = False
    retry_after: float | None = None
    looked_up_in: float = 0.0
    rejected_spans: int = 0


_AWAY = (Unavailable, OSError)
"""Errors that mean that the destination is away; the spans are not at fault."""


class _AllFail(Exception):
    """Calls fail one after the other, and none was accepted."""


def deliver(calls: list[QueuedCall], destination: Destination) -> Outcome:
    """Look up the traces of calls, and send the calls in batches.

    An error that means that the destination is away ends the delivery. For any other error a batch is bisected to find
    the calls at fault. They are dropped if the destination accepted others, and kept if every call fails.

    Args:
        calls: The calls, oldest first.
        destination: Where to send them.
    """
    return _Delivery(destination).deliver(calls)


class _Delivery:
    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._outcome = Outcome()
        self._failed: list[tuple[QueuedCall, Exception]] = []
        self._spans: dict[int, list[ReadableSpan]] = {}
        self._places: Mapping[TraceKey, Place] = {}

    def deliver(self, calls: list[QueuedCall]) -> Outcome:
        outcome = self._outcome
        try:
            groups = self._by_place(calls)
        except Exception as error:
            self._keep(calls, error)
            groups = {}
        for place, group in groups.items():
            if outcome.is_away:
                outcome.again += group
                continue
            try:
                for batch in _batches(group, self._destination.max_batch):
                    self._send(self._mirrored(batch), place)
            except _AWAY as error:
                self._keep(self._unsettled(group), error)
                outcome.is_away = not getattr(error, "one_place", False)
            except _AllFail:
                self._keep(self._unsettled(group), self._failed[-1][1])
        self._judge()
        self._note_sent()
        outcome.is_away = outcome.is_away or bool(outcome.again and not outcome.sent)
        return outcome

    def _mirrored(self, calls: list[QueuedCall]) -> list[QueuedCall]:
        """Make the spans, and return the calls for which that worked."""
        made = []
        self._spans = {}
        for queued in calls:
            try:
                self._spans[queued.number] = mirror(queued.call, self._destination.convention)
                made.append(queued)
            except ExportError as error:
                self._keep([queued], error)
            except Exception as error:
                self._outcome.dropped.append((queued, Reason.INVALID))
                logger.debug("Could not make the spans of a gateway call", exc_info=True)
                warn_once(
                    "export.mirror",
                    "A gateway call could not be mirrored (%s): one of its fields has an invalid value. Check what the "
                    "gateway sets on current_gateway_call(); details are logged at level DEBUG.",
                    type(error).__name__,
                )
        return made

    def _by_place(self, calls: list[QueuedCall]) -> dict[Place, list[QueuedCall]]:
        begun = time.monotonic()
        places = self._places = self._destination.locate(dict.fromkeys(queued.key for queued in calls))
        self._outcome.looked_up_in = time.monotonic() - begun
        located = {(queued.call.user, places[queued.key]) for queued in calls if queued.key in places}
        admitted = {(user, place) for user, place in located if self._destination.admits(user, place)}
        groups: defaultdict[Place, list[QueuedCall]] = defaultdict(list)
        for queued in calls:
            if queued.key not in places:
                self._outcome.unknown.append(queued)
            elif (queued.call.user, places[queued.key]) in admitted:
                groups[places[queued.key]].append(queued)
            else:
                self._outcome.dropped.append((queued, Reason.NOT_ALLOWED))
        return groups

    def _send(self, group: list[QueuedCall], place: Place) -> None:
        if not group:
            return
        spans = [span for queued in group for span in self._spans[queued.number]]
        try:
            rejected = self._destination.send(spans, place) or 0
        except _AWAY:
            raise
        except Exception as error:
            logger.debug("The destination did not accept %d calls", len(group), exc_info=True)
            if len(group) > 1:
                middle = len(group) // 2
                self._send(group[:middle], place)
                self._send(group[middle:], place)
            elif isinstance(error, TraceGone):
                self._outcome.dropped.append((group[0], Reason.TRACE_GONE))
            else:
                group[0].failures += 1
                self._failed.append((group[0], error))
                if not self._outcome.sent and len(self._failed) >= _FAILURES_THAT_TELL:
                    raise _AllFail from error
        else:
            self._note_taken(group, rejected, is_all=rejected >= len(spans))

    def _note_taken(self, group: list[QueuedCall], rejected: int, *, is_all: bool) -> None:
        """Record an accepted request and the number of its spans that were rejected."""
        self._outcome.rejected_spans += rejected
        if rejected:
            self._outcome.trouble = f"the endpoint rejected {rejected} spans of a request that it accepted"
        if is_all:
            self._outcome.dropped += [(queued, Reason.REFUSED) for queued in group]
        else:
            self._outcome.sent += group

    def _unsettled(self, group: Iterable[QueuedCall]) -> list[QueuedCall]:
        settled = {queued.number for queued in self._outcome.sent}
        settled |= {queued.number for queued, _ in self._outcome.dropped}
        settled |= {queued.number for queued, _ in self._failed}
        settled |= {queued.number for queued in self._outcome.again}
        return [queued for queued in group if queued.number not in settled]

    def _judge(self) -> None:
        """Drop the calls that failed alone if the destination accepted others; else keep them."""
        for queued, error in self._failed:
            if self._outcome.sent or (isinstance(error, Refused) and queued.failures >= _MAX_REFUSALS):
                self._outcome.dropped.append((queued, Reason.REFUSED))
                self._outcome.trouble = self._outcome.trouble or kind_of(error)
            else:
                self._keep([queued], error)

    def _keep(self, calls: list[QueuedCall], error: Exception) -> None:
        if isinstance(error, Misconfigured):
            self._outcome.dropped += [(queued, Reason.MISCONFIGURED) for queued in calls]
        else:
            self._outcome.again += calls
        if calls:
            self._outcome.trouble = kind_of(error)
        if isinstance(error, Unavailable):
            self._outcome.retry_after = error.retry_after
        logger.debug("Could not send mirror spans", exc_info=error)

    def _note_sent(self) -> None:
        sent = self._outcome.sent
        keys = dict.fromkeys(queued.key for queued in sent for one in queued.call.attempts if one.usage or one.cost)
        if keys:
            self._destination.sent({key: self._places[key] for key in keys})


def _batches(calls: Iterable[QueuedCall], most: int) -> Iterator[list[QueuedCall]]:
    """Yield batches of at most ``most`` calls. Calls of a trace are in one batch where they fit.

    MLflow adds up what the spans of a write report, and adds nothing to an ended trace that has totals.
    """
    traces: defaultdict[TraceKey, list[QueuedCall]] = defaultdict(list)
    for queued in calls:
        traces[queued.key].append(queued)
    batch: list[QueuedCall] = []
    for group in traces.values():
        if batch and len(batch) + len(group) > most:
            yield batch
            batch = []
        batch += group
        while len(batch) > most:
            yield batch[:most]
            batch = batch[most:]
    if batch:
        yield batch


def kind_of(error: BaseException) -> str:
    """Return an error's kind. Only messages of our own errors are free of addresses and credentials."""
    if isinstance(error, Refused):
        return f"refused: {error}"
    return str(error) if isinstance(error, ExportError) else type(error).__name__
