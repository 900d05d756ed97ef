"""One batch of calls to a destination: where does each belong, who takes it, and which calls are at fault if not."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
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
from agent_gateway_client.server.export.waiting import Held
from agent_gateway_client.server.mirror import mirror

_FAILURES_THAT_TELL = 3
"""Calls that fail alone, one after the other, before the destination is taken to be at fault and not they."""

_MAX_REFUSALS = 5
"""How often a call that is refused alone is tried while nothing else comes that could show whose fault it is."""


@dataclass
class Outcome:
    """What became of the calls of a batch. Each call is in one of the lists.

    Attributes:
        sent: The destination took them.
        unknown: The destination does not know their traces yet.
        dropped: They will never be sent, with the reason.
        again: They are to be sent again.
        trouble: Why not all were sent, an error's kind or a status; ``None`` where the destination works.
        is_away: Whether the destination takes nothing at all, so that there is no use in sending other calls.
        retry_after: The seconds after which the destination asks to be tried again.
        looked_up_in: The seconds that it took to look the traces up.
        rejected_spans: Spans that the destination rejected of requests that it took.
    """

    sent: list[Held] = field(default_factory=list)
    unknown: list[Held] = field(default_factory=list)
    dropped: list[tuple[Held, Reason]] = field(default_factory=list)
    again: list[Held] = field(default_factory=list)
    trouble: str | None = None
    is_away: bool = False
    retry_after: float | None = None
    looked_up_in: float = 0.0
    rejected_spans: int = 0


_AWAY = (Unavailable, OSError)
"""What says that the destination is away, whatever the spans are."""


class _AllFail(Exception):
    """Calls fail one after the other, and none was taken."""


def deliver(calls: list[Held], destination: Destination) -> Outcome:
    """Send a batch of calls.

    What says that the destination is away ends the batch. Anything else is narrowed down, by halves, to the calls at
    fault; they are dropped once the destination has taken others, and kept where every call fails alike.

    Args:
        calls: The calls, oldest first.
        destination: Where to.
    """
    return _Delivery(destination).deliver(calls)


class _Delivery:
    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._outcome = Outcome()
        self._failed: list[tuple[Held, Exception]] = []
        self._spans: dict[int, list[ReadableSpan]] = {}
        self._places: Mapping[TraceKey, Place] = {}

    def deliver(self, calls: list[Held]) -> Outcome:
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
            group = self._mirrored(group)
            try:
                if group:
                    self._send(group, place)
            except _AWAY as error:
                self._keep(self._unsettled(group), error)
                outcome.is_away = not getattr(error, "one_place", False)
            except _AllFail:
                self._keep(self._unsettled(group), self._failed[-1][1])
        self._judge()
        self._note_sent()
        outcome.is_away = outcome.is_away or bool(outcome.again and not outcome.sent)
        return outcome

    def _mirrored(self, calls: list[Held]) -> list[Held]:
        """Make the spans, and return the calls of which some could be made."""
        made = []
        for held in calls:
            try:
                self._spans[held.number] = mirror(held.call, self._destination.convention)
                made.append(held)
            except ExportError as error:
                self._keep([held], error)
            except Exception as error:
                self._outcome.dropped.append((held, Reason.INVALID))
                logger.debug("No spans could be made of a gateway call", exc_info=True)
                warn_once(
                    "export.mirror",
                    "A gateway call could not be mirrored (%s): one of its fields holds what it must not. Look at what "
                    "the gateway sets on current_gateway_call(); details are logged at level DEBUG.",
                    type(error).__name__,
                )
        return made

    def _by_place(self, calls: list[Held]) -> dict[Place, list[Held]]:
        begun = time.monotonic()
        places = self._places = self._destination.locate(dict.fromkeys(held.key for held in calls))
        self._outcome.looked_up_in = time.monotonic() - begun
        located = {(held.call.user, places[held.key]) for held in calls if held.key in places}
        admitted = {(user, place) for user, place in located if self._destination.admits(user, place)}
        groups: defaultdict[Place, list[Held]] = defaultdict(list)
        for held in calls:
            if held.key not in places:
                self._outcome.unknown.append(held)
            elif (held.call.user, places[held.key]) in admitted:
                groups[places[held.key]].append(held)
            else:
                self._outcome.dropped.append((held, Reason.NOT_ALLOWED))
        return groups

    def _send(self, group: list[Held], place: Place) -> None:
        spans = [span for held in group for span in self._spans[held.number]]
        try:
            rejected = self._destination.send(spans, place) or 0
        except _AWAY:
            raise
        except Exception as error:
            logger.debug("A destination did not take %d calls", len(group), exc_info=True)
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

    def _note_taken(self, group: list[Held], rejected: int, *, is_all: bool) -> None:
        """Note that the destination took a request, and how many of its spans it rejected nevertheless."""
        self._outcome.rejected_spans += rejected
        if rejected:
            self._outcome.trouble = f"the endpoint rejected {rejected} spans of a request that it took"
        if is_all:
            self._outcome.dropped += [(held, Reason.REFUSED) for held in group]
        else:
            self._outcome.sent += group

    def _unsettled(self, group: Iterable[Held]) -> list[Held]:
        settled = {held.number for held in self._outcome.sent}
        settled |= {held.number for held, _ in self._outcome.dropped}
        settled |= {held.number for held, _ in self._failed}
        return [held for held in group if held.number not in settled]

    def _judge(self) -> None:
        """Drop the calls that failed alone if the destination took others; else it is at fault, and they are kept."""
        for held, error in self._failed:
            if self._outcome.sent or (isinstance(error, Refused) and held.failures >= _MAX_REFUSALS):
                self._outcome.dropped.append((held, Reason.REFUSED))
                self._outcome.trouble = self._outcome.trouble or kind_of(error)
            else:
                self._keep([held], error)

    def _keep(self, calls: list[Held], error: Exception) -> None:
        if isinstance(error, Misconfigured):
            self._outcome.dropped += [(held, Reason.MISCONFIGURED) for held in calls]
        else:
            self._outcome.again += calls
        if calls:
            self._outcome.trouble = kind_of(error)
        if isinstance(error, Unavailable):
            self._outcome.retry_after = error.retry_after
        logger.debug("Could not send mirror spans", exc_info=error)

    def _note_sent(self) -> None:
        sent = (held for held in self._outcome.sent if any(one.usage or one.cost for one in held.call.attempts))
        places = {held.key: self._places[held.key] for held in sent}
        if places:
            self._destination.sent(places)


def kind_of(error: BaseException) -> str:
    """Return what kind of error it is. Only our own errors' messages are known to hold no address or credential."""
    if isinstance(error, Refused):
        return f"refused: {error}"
    return str(error) if isinstance(error, ExportError) else type(error).__name__
