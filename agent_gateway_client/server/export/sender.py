"""The exporter's second thread: sends the calls that are due, in batches, and keeps those that cannot be sent yet."""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from agent_gateway_client._log import logger
from agent_gateway_client.server.export.counts import Counts, Reason, Tally, TroubleLog
from agent_gateway_client.server.export.delivery import Outcome, deliver
from agent_gateway_client.server.export.destination import Destination
from agent_gateway_client.server.export.waiting import (
    FIRST_PAUSE_SECONDS,
    LAST_PAUSE_SECONDS,
    Held,
    WaitingCalls,
    pause_after,
)
from agent_gateway_client.server.observed.metrics import ExporterMeter

BATCH_SECONDS = 0.5
"""From the begin of a batch to the next at least: of twenty calls together, each costs MLflow a quarter."""

MAX_REST_SECONDS = 5.0
"""A batch that took longer than half of ``BATCH_SECONDS`` is followed by a rest as long as it took, up to this. Its
destination is slow because others use it as well, and they come first."""

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 15.0

_LOOKUP_SHARE = 0.02
"""Of the time, what looking for traces that do not come may take; all around the look-ups takes as much again."""

_ELSEWHERE_SECONDS = 30.0
"""How long a trace is unknown before it is looked for in other workspaces."""


class Sender:
    """Sends what waits.

    Args:
        destination: Where to.
        waiting: The calls that wait.
        tally: Where what becomes of them is counted.
        changed: Notified when something has changed for those who wait.
        log: Where trouble is logged.
        wait_seconds: How long a call waits for its trace.
        counts: Returns what became of all calls so far.
        meter: Records the metrics.

    Attributes:
        problem: Why the last calls were not taken; ``None`` if they were.
        last_problem: The last such reason, and when that was, in seconds since the epoch.
        is_tended: Whether the last batch is done with, and the destination has done all it can after it.
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
        self.is_tended = True
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
        self._tend_at: float | None = None

    def run(self) -> None:
        """Send for ever."""
        while self._warm_up:
            _run_harmlessly(self._warm_up.pop(0))
        while True:
            self._wait_for_work()
            begun = time.monotonic()
            batch = self._waiting.take(begun, self._destination.max_batch)
            if batch:
                self._is_stopped = False
                # Before anything is counted: who waits until nothing waits any more shall also see what is logged.
                self.is_tended = False
                self._send(batch)
            self._tend()
            with self._changed:
                self._changed.notify_all()
            if len(batch) < self._destination.max_batch:
                self.rest_after(begun, at_least=min(time.monotonic() - begun, MAX_REST_SECONDS))

    def warm_up_with(self, functions: Iterable[Callable[[], object]]) -> None:
        """Have functions called in the thread before it sends anything. Has no effect once it runs."""
        self._warm_up += functions

    def rest_after(self, begun: float, *, at_least: float = 0.0) -> None:
        """Wait until it is time for another batch after one that began then, unless somebody waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._flushing, max(at_least, begun + BATCH_SECONDS - time.monotonic()))

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """Let what waits be due now, and pauses be short, for as long as the context lasts."""
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

    def drop_what_comes_back(self) -> None:
        """Drop the calls of the batch that is being sent if it fails: the process stops."""
        self._is_stopped = True

    def _wait_for_work(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                if self._flushing and not self.is_tended:
                    return
                due = self._waiting.next_due()
                times = [self._tend_at] if due is None else [max(due, self._retry_at), self._tend_at]
                known = [at for at in times if at is not None]
                if known and min(known) <= now:
                    return
                self._changed.wait(min(known) - now if known else None)

    def _send(self, batch: list[Held]) -> None:
        outcome = Outcome(again=batch, trouble="an unexpected error", is_away=True)
        try:
            outcome = deliver(batch, self._destination)
        finally:
            # Also where the thread dies: the next one sends what this one has taken.
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
            self._counts, [max(0, now_ns - (held.call.end_time_ns or now_ns)) / 1e9 for held in outcome.sent]
        )

    def _put_back(self, outcome: Outcome) -> int:
        """Let calls wait on. Returns how many were given up for them."""
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
        for held in self._still_unknown(outcome.unknown, now):
            pause = FIRST_PAUSE_SECONDS if self._flushing else max(least, pause_after(now - held.since))
            given_up += self._waiting.put([held], now + pause)
        return len(given_up)

    def _least_pause(self, outcome: Outcome) -> float:
        """Return the pause after which look-ups take no more than their share of the time, where many calls wait."""
        batch = self._destination.max_batch
        seconds = outcome.looked_up_in * max(0, len(self._waiting) - batch) / batch
        return min(seconds / _LOOKUP_SHARE, LAST_PAUSE_SECONDS)

    def _pause_of_a_place(self, outcome: Outcome) -> float:
        return FIRST_PAUSE_SECONDS if self._flushing else outcome.retry_after or LAST_RETRY_SECONDS

    def _still_unknown(self, unknown: list[Held], now: float) -> list[Held]:
        """Drop the calls that have waited too long for their trace, or whose trace is in another workspace."""
        left = []
        seek = []
        for held in unknown:
            if now - held.since > self._wait_seconds:
                self._tally.drop(Reason.UNKNOWN_TRACE, 1)
            else:
                left.append(held)
                if not held.sought_elsewhere and now - held.since > _ELSEWHERE_SECONDS:
                    held.sought_elsewhere = True
                    seek.append(held)
        if not seek:
            return left
        try:
            elsewhere = self._destination.elsewhere(dict.fromkeys(held.key for held in seek))
        except Exception:
            logger.debug("Could not look for traces in other workspaces", exc_info=True)
            return left
        self._tally.drop(Reason.OTHER_WORKSPACE, sum(held.key in elsewhere for held in left))
        return [held for held in left if held.key not in elsewhere]

    def _tend(self) -> None:
        everything = bool(self._flushing)
        pause = self._destination.tend(everything=everything)
        self._tend_at = None if pause is None else time.monotonic() + pause
        if everything:
            self.is_tended = True


def _run_harmlessly(function: Callable[[], object]) -> None:
    try:
        function()
    except Exception as error:
        logger.debug("Could not warm up", exc_info=True)
        logger.warning("Could not warm up (%s); the first call does what is missing.", type(error).__name__)
