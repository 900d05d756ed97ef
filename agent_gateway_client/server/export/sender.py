"""The exporter's sending thread: sends due calls in batches, and queues those again that cannot be sent yet."""

import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import logger
from agent_gateway_client.server.export.counts import Counts, Reason, Tally, TroubleLog
from agent_gateway_client.server.export.delivery import Outcome, deliver
from agent_gateway_client.server.export.destination import Destination
from agent_gateway_client.server.export.waiting import (
    FIRST_PAUSE_SECONDS,
    QueuedCall,
    WaitingCalls,
    pause_after,
)
from agent_gateway_client.server.observed.metrics import ExporterMeter

BATCH_SECONDS = 0.5
"""Minimum time between the starts of two batches: in a batch of twenty, a call costs MLflow a quarter."""

MAX_REST_SECONDS = 5.0
"""Maximum pause after a slow batch. The pause is as long as the batch took: a destination that is slow is also slow for
its other users, and they come first."""

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 15.0

_LOOKUP_SHARE = 0.02
"""Maximum share of the time for look-ups of unknown traces; the work around them takes as much again."""

_FULL_QUEUE_PAUSE_SECONDS = 120.0
"""Maximum pause between two look-ups of a trace if many calls are queued."""

_OTHER_WORKSPACES_SECONDS = 30.0
"""How long a trace is unknown before it is looked up in other workspaces."""


class Sender:
    """Sends the queued calls.

    Args:
        destination: Where to send them.
        waiting: The queue.
        tally: Counts the outcomes.
        changed: Notified after each batch.
        log: Logs problems.
        wait_seconds: How long a call waits for its trace.
        counts: Returns the outcomes of all calls so far.
        meter: Records the metrics.

    Attributes:
        problem: Why the last calls were not accepted; ``None`` if they were.
        last_problem: The last such reason, and its time in seconds since the epoch.
        is_idle: Whether the last batch is finished, including the destination's maintenance.
    """

    def __init__(
        self,
        destination: Destination,
        waiting: WaitingCalls,
        tally: Tally,
        changed: threading.Condition,
        log: TroubleLog,
        wait_seconds: float,
        counts: Callable[[], Counts],
        meter: ExporterMeter,
    ) -> None:
        self.problem: str | None = None
        self.last_problem: tuple[str, float] | None = None
        self._meter = meter
        self._warm_up: list[Callable[[], object]] = []
        self.is_idle = True
        self._destination = destination
        self._waiting = waiting
        self._tally = tally
        self._changed = changed
        self._log = log
        self._wait_seconds = wait_seconds
        self._counts = counts
        self._flushing = 0
        self._is_stopped = False
        self._retry_at = 0.0
        self._retry_pause = FIRST_RETRY_SECONDS
        self._maintain_at = math.inf

    def run(self) -> None:
        """Send until the process ends."""
        while self._warm_up:
            _run_guarded(self._warm_up.pop(0))
        while True:
            self._wait_for_work()
            begun = time.monotonic()
            batch = self._waiting.take(begun, self._destination.max_located)
            if batch:
                self._is_stopped = False
                # Before anything is counted, so that a flush also waits for what is logged.
                self.is_idle = False
                self._send(batch)
            self._maintain()
            with self._changed:
                self._changed.notify_all()
            if len(batch) < self._destination.max_located:
                self.wait_for_next_batch(begun, at_least=min(time.monotonic() - begun, MAX_REST_SECONDS))

    def warm_up_with(self, functions: Iterable[Callable[[], object]]) -> None:
        """Call functions in the thread before it sends anything. Has no effect once it runs."""
        self._warm_up += functions

    def wait_for_next_batch(self, begun: float, *, at_least: float = 0.0) -> None:
        """Wait until ``BATCH_SECONDS`` after the start of the last batch; not during a flush."""
        with self._changed:
            self._changed.wait_for(lambda: self._flushing, max(at_least, begun + BATCH_SECONDS - time.monotonic()))

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """Make all queued calls due and shorten pauses while the context lasts."""
        with self._changed:
            self._flushing += 1
            self._retry_at = 0.0
            self._waiting.make_due(time.monotonic())
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._flushing -= 1

    def drop_failed_batch(self) -> None:
        """Drop the calls of the current batch, and do not queue them again, if it fails: the process stops."""
        self._is_stopped = True

    def _wait_for_work(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                if self._flushing and not self.is_idle:
                    return
                at = min(self._next_send(), self._maintain_at)
                if at <= now:
                    return
                self._changed.wait(None if at == math.inf else at - now)

    def _next_send(self) -> float:
        """Return when the next calls are to be sent; infinity if the queue is empty."""
        due = self._waiting.next_due()
        return math.inf if due is None else max(due, self._retry_at)

    def _send(self, batch: list[QueuedCall]) -> None:
        outcome = Outcome(again=batch, trouble="an unexpected error", is_away=True)
        try:
            outcome = deliver(batch, self._destination)
        finally:
            # Also if the thread dies: the next one sends the batch.
            self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        self.problem = outcome.trouble
        if outcome.trouble is not None:
            self.last_problem = outcome.trouble, time.time()
        self._tally.send(len(outcome.sent))
        self._tally.reject(outcome.rejected_spans)
        for _, reason in outcome.dropped:
            self._tally.drop(reason, 1)
        given_up = self._put_back(outcome)
        self._tally.drop(Reason.QUEUE_FULL, given_up)
        if outcome.again:
            self._log.waiting(f"the store cannot be reached ({outcome.trouble})", self._counts())
        self._log.dropped(self._counts())
        now_ns = time.time_ns()
        self._meter.note(
            self._counts, [max(0, now_ns - (queued.call.end_time_ns or now_ns)) / 1e9 for queued in outcome.sent]
        )

    def _put_back(self, outcome: Outcome) -> int:
        """Queue calls again. Returns how many were dropped for them."""
        now = time.monotonic()
        if self._is_stopped:
            self._tally.drop(Reason.STOPPED, len(outcome.again) + len(outcome.unknown))
            return 0
        if outcome.is_away:
            pause = outcome.retry_after or self._retry_pause * random.uniform(0.5, 1.0)
            self._retry_at = now + (FIRST_RETRY_SECONDS if self._flushing else pause)
            self._retry_pause = min(self._retry_pause * 2, LAST_RETRY_SECONDS)
        else:
            self._retry_pause = FIRST_RETRY_SECONDS
        given_up = self._waiting.put(outcome.again, now if outcome.is_away else now + self._pause_of_a_place(outcome))
        least = self._least_pause(outcome)
        for queued in self._still_unknown(outcome.unknown, now):
            pause = FIRST_PAUSE_SECONDS if self._flushing else max(least, pause_after(now - queued.since))
            given_up += self._waiting.put([queued], now + pause)
        return len(given_up)

    def _least_pause(self, outcome: Outcome) -> float:
        """Return the pause that limits look-ups to their share of the time when many calls are queued."""
        batch = self._destination.max_located
        seconds = outcome.looked_up_in * max(0, len(self._waiting) - batch) / batch
        return min(seconds / _LOOKUP_SHARE, _FULL_QUEUE_PAUSE_SECONDS)

    def _pause_of_a_place(self, outcome: Outcome) -> float:
        return FIRST_PAUSE_SECONDS if self._flushing else outcome.retry_after or LAST_RETRY_SECONDS

    def _still_unknown(self, unknown: list[QueuedCall], now: float) -> list[QueuedCall]:
        """Drop calls that have waited too long for their trace, or whose trace is in another workspace."""
        left = []
        seek = []
        for queued in unknown:
            if now - queued.since > self._wait_seconds:
                self._tally.drop(Reason.UNKNOWN_TRACE, 1)
            else:
                left.append(queued)
                if not queued.searched_other_workspaces and now - queued.since > _OTHER_WORKSPACES_SECONDS:
                    queued.searched_other_workspaces = True
                    seek.append(queued)
        if not seek:
            return left
        try:
            found = self._destination.find_in_other_workspaces(dict.fromkeys(queued.key for queued in seek))
        except Exception:
            logger.debug("Could not look up traces in other workspaces", exc_info=True)
            return left
        self._tally.drop(Reason.OTHER_WORKSPACE, sum(queued.key in found for queued in left))
        return [queued for queued in left if queued.key not in found]

    def _maintain(self) -> None:
        # Once, after the last batch: a check of all traces after each batch would slow the flush down.
        everything = bool(self._flushing) and self._next_send() > time.monotonic()
        pause = self._destination.maintain(everything=everything)
        self._maintain_at = math.inf if pause is None else time.monotonic() + pause
        if everything:
            self.is_idle = True


def _run_guarded(function: Callable[[], object]) -> None:
    with _warm_up_guard:
        function()


_warm_up_guard = Guard("Could not warm up; the first call does it")
