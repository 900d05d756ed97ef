"""The exporter: takes ended calls off the request path and brings their mirrors to a destination.

Two threads do the work, so that a destination that hangs does not keep what a call holds on to: one reads the facts of
calls that have ended and lets go of their payload, the other sends (:mod:`~agent_gateway_client.server.export.sender`).
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
"""Calls that wait to be sent, in one process."""

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Bytes that waiting calls take, in one process; a call takes 2 to 4 KB."""

WAIT_SECONDS = 3_600.0
"""How long a call waits for its trace."""

STOP_SECONDS = 10.0
"""How long a stop may take, for everything."""

_IN_FLIGHT_SECONDS = 0.25
"""Of a stop's time, what is left to calls that are being sent when the others are given up."""


class Exporter:
    """Sends calls that have ended to a destination, each once, and counts what becomes of them.

    Attributes:
        destination: Where they are sent.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        max_waiting_calls: int = MAX_WAITING_CALLS,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        """Make an exporter. Its threads start with the first call.

        Args:
            destination: Where calls are sent.
            max_waiting_calls: Calls that may wait; beyond it the oldest are dropped.
            max_waiting_bytes: Bytes that waiting calls may take; beyond it the oldest are dropped.
            wait_seconds: How long a call waits for its trace to become known to the destination.
        """
        self.destination = destination
        self._max_waiting_calls = max_waiting_calls
        self._max_waiting_bytes = max_waiting_bytes
        self._wait_seconds = wait_seconds
        self._stop_by: float | None = None
        self._start_afresh()
        _exporters.add(self)

    @property
    def problem(self) -> str | None:
        """Why the last calls were not taken, an HTTP status or an error's kind; ``None`` if they were."""
        return self._sender.problem

    @property
    def last_problem(self) -> tuple[str, float] | None:
        """The last reason why calls were not taken, and when that was, in seconds since the epoch."""
        return self._sender.last_problem

    @property
    def dropped(self) -> int:
        """Number of calls that were not and will not be sent."""
        return sum(self.counts().dropped.values())

    def counts(self) -> Counts:
        """Return what became of the calls that were submitted so far."""
        with self._tally.lock:
            sent, dropped = self._tally.sent, {reason.value: n for reason, n in self._tally.dropped.items()}
            rejected = self._tally.rejected_spans
            # Read last, so that no call is counted as sent before it was submitted.
            submitted = _taken_from(self._submissions)
        return Counts(submitted, sent, submitted - sent - sum(dropped.values()), dropped, rejected)

    def is_full(self) -> bool:
        """Return whether the next calls would push out others that wait."""
        return self.counts().waiting >= self._max_waiting_calls

    def submit(self, call: GatewayCall, finish: Finish | None = None) -> None:
        """Take a call that has ended. Returns at once and never raises.

        Args:
            call: The call.
            finish: Adds to it what can be read now that it has ended. It may hold on to a payload, which is let go
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
        """Call functions in the thread that sends, before it sends anything. Returns at once and never raises.

        Mirrors wait for it, requests do not.
        """
        self._sender.warm_up_with(functions)
        self._sender_thread.start()

    def flush(self, timeout: float = STOP_SECONDS) -> bool:
        """Send what waits now, without the pauses between tries, and complete the totals of the traces.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether nothing waits any more. Calls whose traces the destination does not know yet still do.
        """
        deadline = time.monotonic() + timeout
        self._arrived.set()
        with self._sender.flushing(), self._changed:
            while not self._is_done():
                # Threads that could not be started, or have died, are started by whoever waits for them.
                self._start_threads()
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_running:
                    return False
                self._changed.wait(min(left, 1.0))
            return True

    def shutdown(self, timeout: float = STOP_SECONDS) -> None:
        """Send what waits, for at most ``timeout`` seconds; what cannot be sent by then is dropped and counted.

        A second call while a stop has not succeeded waits no longer than the first one would have.
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
        self._sender.drop_what_comes_back()
        with self._changed:
            self._changed.wait_for(lambda: not self.counts().waiting, max(0.0, stop_by - time.monotonic()))
        counts = self.counts()
        self._meter.note(self.counts)
        if counts.waiting or counts.dropped.get(Reason.STOPPED.value):
            logger.warning(
                "%d mirrored calls could not be sent before the process ended and are lost; %d more were on their way.",
                counts.dropped.get(Reason.STOPPED.value, 0),
                counts.waiting,
            )

    def _start_afresh(self) -> None:
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
        return not self.counts().waiting and self._sender.is_tended

    def _start_threads(self) -> None:
        self._reader.start()
        self._sender_thread.start()

    def _log_no_thread(self, error: RuntimeError) -> None:
        # Calls wait, and the next one tries again.
        self._log.waiting(f"no thread can be started to send them ({error})", self.counts())

    def _read_for_ever(self) -> None:
        while True:
            self._arrived.wait()
            self._arrived.clear()
            begun = time.monotonic()
            while (ended := self._intake.pop()) is not None:
                self._take_in(*ended)
                del ended
            self._sender_thread.start()
            with self._changed:
                self._changed.notify_all()
            self._meter.note(self.counts)
            self._sender.rest_after(begun)

    def _take_in(self, call: GatewayCall, finish: Finish | None) -> None:
        read_facts(call, finish)
        try:
            call.compact()
            given_up = self._waiting.add(call, time.monotonic())
        except Exception:
            logger.debug("A gateway call holds what it must not", exc_info=True)
            self._tally.drop(Reason.INVALID, 1)
        else:
            self._tally.drop(Reason.QUEUE_FULL, len(given_up))


def _taken_from(numbers: "itertools.count[int]") -> int:
    """Return how many numbers were taken. Taking one is atomic, and asking takes none."""
    return int(repr(numbers)[len("count(") : -1])


_exporters: "weakref.WeakSet[Exporter]" = weakref.WeakSet()


def _shutdown_all() -> None:
    deadline = time.monotonic() + STOP_SECONDS
    for exporter in list(_exporters):
        exporter.shutdown(max(0.0, deadline - time.monotonic()))


def _after_fork() -> None:
    # The parent's threads do not live in the child, its locks may be held by them, and what waits is the parent's to
    # send.
    for exporter in list(_exporters):
        exporter.destination.after_fork()
        exporter._start_afresh()


atexit.register(_shutdown_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
