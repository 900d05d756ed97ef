"""What became of the calls that were submitted, and what is logged of it."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from agent_gateway_client._log import logger

LOG_SECONDS = 60.0


class Reason(Enum):
    """Why a call was dropped. The value is the reason's name in metrics and in the status."""

    QUEUE_FULL = "queue_full"
    UNKNOWN_TRACE = "unknown_trace"
    OTHER_WORKSPACE = "other_workspace"
    NOT_ALLOWED = "not_allowed"
    TRACE_GONE = "trace_gone"
    REFUSED = "refused"
    INVALID = "invalid"
    MISCONFIGURED = "misconfigured"
    STOPPED = "stopped"


WHY = {
    Reason.QUEUE_FULL: "more calls came in than could be stored",
    Reason.UNKNOWN_TRACE: (
        "the store never got the caller's trace: the agent traces to another server, ended before it sent its trace, "
        "or made the trace id up"
    ),
    Reason.OTHER_WORKSPACE: (
        "the caller's trace is in another MLflow workspace than the gateway: let the agent trace into the gateway's"
    ),
    Reason.NOT_ALLOWED: "their callers may not write to the experiment that the trace is in",
    Reason.TRACE_GONE: "the caller's trace was deleted or archived in the meantime",
    Reason.REFUSED: "the store refused them",
    Reason.INVALID: "a field holds what it must not; look at what the gateway sets on current_gateway_call()",
    Reason.MISCONFIGURED: "the exporter's configuration cannot work",
    Reason.STOPPED: "the process ended before they could be sent",
}


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls since the process started; ``sent``, ``waiting`` and ``dropped`` add up to ``submitted``.

    Attributes:
        submitted: Calls that were handed to the exporter.
        sent: Calls whose mirrors the destination took.
        waiting: Calls that are still to be sent, or are being sent.
        dropped: Calls that never will be sent, by reason.
        rejected_spans: Spans that an OTLP endpoint rejected of requests that it took. It does not say whose they are;
            their calls count as sent unless it rejected all of them.
    """

    submitted: int
    sent: int
    waiting: int
    dropped: Mapping[str, int]
    rejected_spans: int = 0


class Tally:
    """Counts calls, from several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sent = 0
        self.dropped: Counter[Reason] = Counter()
        self.rejected_spans = 0

    def send(self, count: int) -> None:
        """Count calls whose mirrors the destination took."""
        with self.lock:
            self.sent += count

    def reject(self, spans: int) -> None:
        """Count spans that an endpoint rejected of requests that it took."""
        with self.lock:
            self.rejected_spans += spans

    def drop(self, reason: Reason, count: int) -> None:
        """Count calls that never will be sent."""
        if count:
            with self.lock:
                self.dropped[reason] += count


class TroubleLog:
    """Logs once a minute why calls wait and why calls were dropped."""

    def __init__(self) -> None:
        self._logged: dict[str, int] = {}
        self._next = 0.0

    def waiting(self, why: str, counts: Counts) -> None:
        """Log that calls wait, unless something was logged within the last minute."""
        if self._is_due():
            self._logged = dict(counts.dropped)
            logger.warning(
                "Mirror spans wait because %s: %d calls waiting, %d dropped so far. Requests are served as before.",
                why,
                counts.waiting,
                sum(counts.dropped.values()),
            )

    def dropped(self, counts: Counts) -> None:
        """Log what was dropped since the last time, unless something was logged within the last minute."""
        news = {reason: count - self._logged.get(reason, 0) for reason, count in counts.dropped.items()}
        if any(news.values()) and self._is_due():
            self._logged = dict(counts.dropped)
            logger.warning(
                "Mirrored calls were dropped: %s. %d calls waiting. Requests are served as before.",
                "; ".join(f"{count} because {WHY[Reason(reason)]}" for reason, count in news.items() if count),
                counts.waiting,
            )

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LOG_SECONDS
        return True
