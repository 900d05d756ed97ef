"""Counts the submitted calls by outcome, and logs why calls wait or were dropped."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from agent_gateway_client._log import logger

LOG_SECONDS = 60.0


class Reason(Enum):
    """Why a call was dropped. The values appear in metrics and in the status."""

    QUEUE_FULL = "queue_full"
    UNKNOWN_TRACE = "unknown_trace"
    OTHER_WORKSPACE = "other_workspace"
    NOT_ALLOWED = "not_allowed"
    TRACE_GONE = "trace_gone"
    REFUSED = "refused"
    INVALID = "invalid"
    MISCONFIGURED = "misconfigured"
    STOPPED = "stopped"


_WHAT_TO_DO = {
    Reason.QUEUE_FULL: "calls came in faster than they could be stored",
    Reason.UNKNOWN_TRACE: (
        "the store never received the caller's trace: the agent traces to another server, exited before it sent its "
        "trace, or sent a trace id that does not exist"
    ),
    Reason.OTHER_WORKSPACE: (
        "the caller's trace is in another MLflow workspace than the gateway: trace into the gateway's workspace"
    ),
    Reason.NOT_ALLOWED: "their callers may not write to the experiment of the trace",
    Reason.TRACE_GONE: "the caller's trace was deleted or archived",
    Reason.REFUSED: "the store refused them",
    Reason.INVALID: "a field has an invalid value; check what the gateway sets on current_gateway_call()",
    Reason.MISCONFIGURED: "the exporter's configuration is invalid",
    Reason.STOPPED: "the process ended before they could be sent",
}


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls since the process started; ``sent``, ``waiting`` and ``dropped`` add up to ``submitted``.

    Attributes:
        submitted: Calls submitted to the exporter.
        sent: Calls whose mirrors the destination accepted.
        waiting: Calls that are queued or being sent.
        dropped: Calls that will never be sent, by reason.
        rejected_spans: Spans that an OTLP endpoint rejected in requests that it accepted (partial success). It does not
            report which; their calls count as sent unless all spans of the request were rejected.
    """

    submitted: int
    sent: int
    waiting: int
    dropped: Mapping[str, int]
    rejected_spans: int = 0


class Tally:
    """Counts calls; thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sent = 0
        self.dropped: Counter[Reason] = Counter()
        self.rejected_spans = 0

    def send(self, count: int) -> None:
        """Count calls whose mirrors the destination accepted."""
        with self.lock:
            self.sent += count

    def reject(self, spans: int) -> None:
        """Count spans that an endpoint rejected in requests that it accepted."""
        with self.lock:
            self.rejected_spans += spans

    def drop(self, reason: Reason, count: int) -> None:
        """Count calls that will never be sent."""
        if count:
            with self.lock:
                self.dropped[reason] += count


class TroubleLog:
    """Logs once a minute why calls wait and why calls were dropped."""

    def __init__(self) -> None:
        self._logged: dict[str, int] = {}
        self._next = 0.0

    def waiting(self, why: str, counts: Counts) -> None:
        """Log why calls wait, unless something was logged within the last minute."""
        if self._is_due():
            self._logged = dict(counts.dropped)
            logger.warning(
                "Mirror spans wait because %s: %d calls waiting, %d dropped so far. Requests are served as before.",
                why,
                counts.waiting,
                sum(counts.dropped.values()),
            )

    def dropped(self, counts: Counts) -> None:
        """Log the calls dropped since the last time, unless something was logged within the last minute."""
        news = {reason: count - self._logged.get(reason, 0) for reason, count in counts.dropped.items()}
        if any(news.values()) and self._is_due():
            self._logged = dict(counts.dropped)
            logger.warning(
                "Mirrored calls were dropped: %s. %d calls waiting. Requests are served as before.",
                "; ".join(f"{count} because {_WHAT_TO_DO[Reason(reason)]}" for reason, count in news.items() if count),
                counts.waiting,
            )

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LOG_SECONDS
        return True
