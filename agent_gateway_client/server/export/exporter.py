"""The exporter: accepts ended calls on the request path and sends their mirrors in the background.

It has two threads, so that payloads are released even if the destination hangs: one reads the facts of ended calls and
releases their payloads, the other sends (:mod:`~agent_gateway_client.server.export.sender`).
"""

import atexit
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable

from agent_gateway_client._log import logger
from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.export.counts import Counts, Reason, Tally, TroubleLog
from agent_gateway_client.server.export.destination import Destination
from agent_gateway_client.server.export.intake import Finish, Intake, read_facts
from agent_gateway_client.server.export.sender import Sender
from agent_gateway_client.server.export.waiting import WaitingCalls
from agent_gateway_client.server.export.worker import Worker
from agent_gateway_client.server.observed.metrics import ExporterMeter

MAX_WAITING_CALLS = 10_000
"""Queued calls per process."""

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Size of the queued calls per process; a call takes 2 to 4 KB."""

WAIT_SECONDS = 3_600.0
"""How long a call waits for its trace."""

STOP_SECONDS = 10.0
"""Total time for a stop."""

_IN_FLIGHT_SECONDS = 0.25
"""The part of a stop's time that is left for calls in flight after the queue is dropped."""


class Exporter:
    """Sends each ended call to a destination once, and counts the outcomes.

    Attributes:
        destination: Where calls are sent.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        max_waiting_calls: int = MAX_WAITING_CALLS,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        """Create an exporter. Its threads start with the first call.

        Args:
            destination: Where calls are sent.
            max_waiting_calls: Maximum number of queued calls; the oldest are dropped.
            max_waiting_bytes: Maximum size of queued calls; the oldest are dropped.
            wait_seconds: How long a call waits until the destination knows its trace.
        """
        self.destination = destination
        self._max_waiting_calls = max_waiting_calls
        self._max_waiting_bytes = max_waiting_bytes
        self._wait_seconds = wait_seconds
        self._stop_by: float | None = None
        self._reset()
        _exporters.add(self)

    @property
    def problem(self) -> str | None:
        """Why the last calls were not accepted, an HTTP status or an error's kind; ``None`` if they were."""
        return self._sender.problem

    @property
    def last_problem(self) -> tuple[str, float] | None:
        """The last reason why calls were not accepted, and its time in seconds since the epoch."""
        return self._sender.last_problem

    @property
    def dropped(self) -> int:
        """Number of calls that were not and will not be sent."""
        return sum(self.counts().dropped.values())

    def counts(self) -> Counts:
        """Return the outcomes of the calls submitted so far."""
        with self._tally.lock:
            sent, dropped = self._tally.sent, {reason.value: n for reason, n in self._tally.dropped.items()}
            rejected = self._tally.rejected_spans
            # Read last, so that no call is counted as sent before it was submitted.
            submitted = _taken_from(self._submissions)
        return Counts(submitted, sent, submitted - sent - sum(dropped.values()), dropped, rejected)

    def is_full(self) -> bool:
        """Return whether the queue is full, so that the next call drops the oldest one."""
        return self.counts().waiting >= self._max_waiting_calls

    def submit(self, call: GatewayCall, finish: Finish | None = None) -> None:
        """Submit an ended call. Returns immediately and never raises.

        Args:
            call: The call.
            finish: Adds facts that can only be read after the call. It may keep a payload alive, which is released
                within seconds.
        """
        next(self._submissions)
        given_up = self._intake.add(call, finish)
        if given_up:
            self._tally.drop(Reason.QUEUE_FULL, given_up)
        if not self._arrived.is_set():
            self._arrived.set()
        if not self._reader.is_running:
            self._reader.start()

    def warm_up(self, *functions: Callable[[], object]) -> None:
        """Call functions in the sending thread before it sends anything. Returns immediately and never raises.

        Mirrors wait for them, requests do not.
        """
        self._sender.warm_up_with(functions)
        self._sender_thread.start()

    def flush(self, timeout: float = STOP_SECONDS) -> bool:
        """Send the queued calls without pauses between retries, and complete the totals of the traces.

        Args:
            timeout: Maximum time in seconds.

        Returns:
            Whether the queue is empty. Calls whose traces the destination does not know yet stay queued.
        """
        deadline = time.monotonic() + timeout
        self._arrived.set()
        with self._sender.flushing(), self._changed:
            while not self._is_done():
                # Restart threads that could not be started or have died.
                self._start_threads()
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_running:
                    return False
                self._changed.wait(min(left, 1.0))
            return True

    def shutdown(self, timeout: float = STOP_SECONDS) -> None:
        """Send the queued calls for at most ``timeout`` seconds; then drop and count the rest.

        A second call after an unsuccessful stop does not extend the first one's deadline.
        """
        now = time.monotonic()
        stop_by = now + timeout
        if self._stop_by is not None and now < self._stop_by + STOP_SECONDS:
            stop_by = min(stop_by, self._stop_by)
        self._stop_by = stop_by
        if self.flush(stop_by - now - min(_IN_FLIGHT_SECONDS, timeout / 4)):
            self._stop_by = None
            return
        lost = self._intake.clear() + self._waiting.clear()
        self._tally.drop(Reason.STOPPED, lost)
        self._sender.drop_failed_batch()
        with self._changed:
            self._changed.wait_for(lambda: not self.counts().waiting, max(0.0, stop_by - time.monotonic()))
        counts = self.counts()
        self._meter.note(self.counts)
        if counts.waiting or counts.dropped.get(Reason.STOPPED.value):
            logger.warning(
                "%d mirrored calls could not be sent before the process ended and are lost; %d more were in flight.",
                counts.dropped.get(Reason.STOPPED.value, 0),
                counts.waiting,
            )

    def _reset(self) -> None:
        self._submissions = itertools.count()
        self._tally = Tally()
        self._intake = Intake(self._max_waiting_calls)
        self._waiting = WaitingCalls(self._max_waiting_calls, self._max_waiting_bytes)
        self._arrived = threading.Event()
        self._changed = threading.Condition()
        self._stop_by = None
        self._log = TroubleLog()
        self._meter = ExporterMeter(self._max_waiting_calls)
        self._sender = Sender(
            self.destination,
            self._waiting,
            self._tally,
            self._changed,
            self._log,
            self._wait_seconds,
            self.counts,
            self._meter,
        )
        self._reader = Worker("agent-gateway-reader", self._read_for_ever, self._log_no_thread)
        self._sender_thread = Worker("agent-gateway-exporter", self._sender.run, self._log_no_thread)

    def _is_done(self) -> bool:
        return not self.counts().waiting and self._sender.is_idle

    def _start_threads(self) -> None:
        self._reader.start()
        self._sender_thread.start()

    def _log_no_thread(self, error: RuntimeError) -> None:
        # Calls stay queued, and the next one tries again.
        self._log.waiting(f"the sending thread cannot be started ({error})", self.counts())

    def _read_for_ever(self) -> None:
        while True:
            self._arrived.wait()
            self._arrived.clear()
            begun = time.monotonic()
            while (ended := self._intake.pop()) is not None:
                self._read_and_queue(*ended)
                del ended
            self._sender_thread.start()
            with self._changed:
                self._changed.notify_all()
            self._meter.note(self.counts)
            self._sender.wait_for_next_batch(begun)

    def _read_and_queue(self, call: GatewayCall, finish: Finish | None) -> None:
        read_facts(call, finish)
        try:
            call.compact()
            given_up = self._waiting.add(call, time.monotonic())
        except Exception:
            logger.debug("A gateway call has a field with an invalid value", exc_info=True)
            self._tally.drop(Reason.INVALID, 1)
        else:
            if given_up:
                self._tally.drop(Reason.QUEUE_FULL, len(given_up))


def _taken_from(numbers: "itertools.count[int]") -> int:
    """Return how many numbers were taken, without taking one. ``next()`` is atomic, so there is no lock."""
    return int(repr(numbers)[len("count(") : -1])


_exporters: "weakref.WeakSet[Exporter]" = weakref.WeakSet()


def _shutdown_all() -> None:
    deadline = time.monotonic() + STOP_SECONDS
    for exporter in list(_exporters):
        exporter.shutdown(max(0.0, deadline - time.monotonic()))


def _after_fork() -> None:
    # The child has none of the parent's threads, which may have held locks. The parent sends what it has queued.
    for exporter in list(_exporters):
        exporter.destination.after_fork()
        exporter._reset()


atexit.register(_shutdown_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
