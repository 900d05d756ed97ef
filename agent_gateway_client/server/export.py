"""Where mirror spans go: off the request path, bounded, retried, counted.

The request only puts its call into a queue. A thread makes the spans and sends them in batches; while the destination
is away they wait and are tried again, and beyond the bound the oldest are dropped, counted, and logged once a minute.
Sending a span twice is harmless, because its ids are fixed.
"""

import atexit
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from opentelemetry.sdk.trace import ReadableSpan

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.mirror import Convention, mirror

MAX_WAITING_CALLS = 10_000
"""Calls that wait to be sent, in one process; about 2 KB each."""

MAX_BATCH = 200
"""Calls that are sent together."""

_BATCH_SECONDS = 0.5
"""From the begin of a batch to the next at least: of twenty calls together, each costs MLflow a quarter."""

_PAUSE_SECONDS = 0.2
_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 15.0
_SHUTDOWN_SECONDS = 10.0
_LOG_SECONDS = 60.0

Finish = Callable[[GatewayCall], None]
"""Adds to a call what can be read after it has ended; runs in the exporter's thread."""


class Rejected(Exception):
    """The destination will never take these spans, however often they are sent."""


class Destination(Protocol):
    """Where spans are sent."""

    convention: Convention

    def send(self, spans: Sequence[ReadableSpan]) -> None:
        """Store the spans.

        Raises:
            Rejected: They will never be taken.
            Exception: Anything else: they may be taken later.
        """


class Exporter:
    """A queue of calls and the thread that sends them.

    Attributes:
        destination: Where they are sent.
        dropped: Number of calls that were not and will not be sent.
        problem: Why the last spans were not taken, by an HTTP status or an exception's class; ``None`` if they were.
    """

    def __init__(self, destination: Destination, *, max_waiting_calls: int = MAX_WAITING_CALLS) -> None:
        self.destination = destination
        self.dropped = 0
        self.problem: str | None = None
        self._max_waiting = max_waiting_calls
        self._logged_dropped = 0
        self._next_log = 0.0
        self._start_afresh()
        _exporters.add(self)

    def submit(self, call: GatewayCall, finish: Finish | None = None) -> None:
        """Take a call that has ended. Returns at once and never raises."""
        # No lock: deque's own operations need none, and the exporter's thread would hold it in between.
        self._queue.append((call, finish))
        if len(self._queue) > self._max_waiting:
            self._drop_oldest()
        if not self._wake.is_set():
            self._wake.set()
        if self._thread is None:
            self._keep_running()

    def flush(self, timeout: float = _SHUTDOWN_SECONDS) -> bool:
        """Wait until everything submitted so far has been sent or dropped.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it has.
        """
        deadline = time.monotonic() + timeout
        with self._idle:
            self._flushing += 1
            try:
                self._wake.set()
                self._idle.notify_all()
                if self._thread is None and not self._is_empty():
                    self._keep_running()
                return self._idle.wait_for(self._is_empty, max(0.0, deadline - time.monotonic()))
            finally:
                self._flushing -= 1

    def shutdown(self, timeout: float = _SHUTDOWN_SECONDS) -> None:
        """Send what waits, for at most ``timeout`` seconds; say how many calls could not be sent."""
        if not self.flush(timeout):
            left = len(self._queue) + len(self._pending)
            self.dropped += left
            logger.warning("%d mirrored calls could not be sent before the process ended and are lost.", left)
            self._queue.clear()
            self._pending.clear()

    def _start_afresh(self) -> None:
        self._queue: deque[tuple[GatewayCall, Finish | None]] = deque()
        self._pending: deque[list[ReadableSpan]] = deque(maxlen=self._max_waiting)
        self._wake = threading.Event()
        self._counting = threading.Lock()
        self._idle = threading.Condition()
        self._flushing = 0
        self._busy = False
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()

    def _keep_running(self) -> None:
        """Start the thread unless it is running: at the first call, after a fork, and when it has died."""
        with self._thread_lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="agent-gateway-exporter", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:
                self._thread = None
                # The system has no thread left, or the interpreter is ending. Calls wait, and the next one tries again.
                self._log_trouble(f"no thread can be started to send them ({error})")

    def _is_empty(self) -> bool:
        return not (self._queue or self._pending or self._busy)

    def _run(self) -> None:
        try:
            self._send_for_ever()
        finally:
            self._thread = None

    def _send_for_ever(self) -> None:
        delay = _FIRST_RETRY_SECONDS
        next_batch = 0.0
        while True:
            self._wake.wait()
            # After a quiet time a call is sent at once: it may be its trace's last, and MLflow sums the
            # tokens of a trace up only until its client has ended it.
            self._rest(next_batch - time.monotonic())
            next_batch = time.monotonic() + _BATCH_SECONDS
            self._busy = True
            self._wake.clear()
            try:
                self._make_spans()
                self._send_pending()
                delay = _FIRST_RETRY_SECONDS
            except Exception as error:  # whatever the destination does, the thread goes on
                self.problem = _name_of(error)
                self._log_trouble(f"the store cannot be reached ({self.problem})")
                logger.debug("Mirror spans could not be sent", exc_info=True)
                self._pause(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, _LAST_RETRY_SECONDS)
                self._wake.set()
            if self.dropped > self._logged_dropped:
                self._log_trouble("more calls came in than could be sent")
            self._busy = False
            with self._idle:
                if self._is_empty():
                    self._idle.notify_all()

    def _make_spans(self) -> None:
        while self._queue:
            try:
                call, finish = self._queue.popleft()
            except IndexError:  # dropped meanwhile
                return
            if finish is not None:
                self._finish(call, finish)
            try:
                spans = mirror(call, self.destination.convention)
            except Exception as error:
                self._count_dropped()
                logger.debug("No spans could be made of a gateway call", exc_info=True)
                warn_once(
                    "export.mirror",
                    "A gateway call could not be mirrored (%s): one of its fields holds what it must not. Look at what "
                    "the gateway sets on current_gateway_call(); details are logged at level DEBUG.",
                    type(error).__name__,
                )
                continue
            if len(self._pending) == self._max_waiting:
                self._count_dropped()
            self._pending.append(spans)

    def _finish(self, call: GatewayCall, finish: Finish) -> None:
        try:
            finish(call)
        except Exception as error:
            logger.debug("A gateway call's details could not be read", exc_info=True)
            warn_once(
                "export.finish",
                "The details of a gateway call could not be read (%s); its mirror says only what HTTP tells. Details "
                "are logged at level DEBUG.",
                type(error).__name__,
            )

    def _send_pending(self) -> None:
        while self._pending:
            size = min(len(self._pending), MAX_BATCH)
            batch = [self._pending[index] for index in range(size)]
            try:
                self.destination.send([span for spans in batch for span in spans])
            except Rejected:
                self._send_one_by_one(size)
            else:
                self.problem = None
                for _ in range(size):
                    self._pending.popleft()

    def _send_one_by_one(self, size: int) -> None:
        """Find the calls that the destination rejects, and drop only those."""
        for _ in range(size):
            try:
                self.destination.send(self._pending[0])
            except Rejected as error:
                self._count_dropped()
                self.problem = f"rejected: {error}"
                self._log_trouble(f"the store rejects them ({error})")
            self._pending.popleft()

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        time.sleep(min(seconds, _PAUSE_SECONDS))
        while time.monotonic() < deadline and not self._flushing:
            # Meanwhile what comes in is made into spans: a call may hold on to more memory than its spans do.
            self._make_spans()
            self._rest(_PAUSE_SECONDS)

    def _rest(self, seconds: float) -> None:
        """Wait, unless somebody waits for what is to be sent."""
        with self._idle:
            self._idle.wait_for(lambda: self._flushing, seconds)

    def _drop_oldest(self) -> None:
        with suppress(IndexError):
            self._queue.popleft()
            self._count_dropped()

    def _count_dropped(self) -> None:
        with self._counting:
            self.dropped += 1

    def _log_trouble(self, why: str) -> None:
        now = time.monotonic()
        if now >= self._next_log:
            self._next_log = now + _LOG_SECONDS
            self._logged_dropped = self.dropped
            logger.warning(
                "Mirror spans wait because %s: %d calls waiting, %d dropped so far. Requests are served as before.",
                why,
                len(self._queue) + len(self._pending),
                self.dropped,
            )


def _name_of(error: BaseException) -> str:
    """Return what kind of error it is; its message may hold an address or a credential."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError) and not isinstance(error, OSError):
        # MLflow's client raises an exception of its own where it cannot connect.
        return type(cause).__name__
    status = getattr(error, "status", None)
    if status is None and hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
    return f"HTTP {status}" if isinstance(status, int) else type(error).__name__


_exporters: "weakref.WeakSet[Exporter]" = weakref.WeakSet()


def _shutdown_all() -> None:
    for exporter in list(_exporters):
        exporter.shutdown()


def _after_fork() -> None:
    # The parent's thread does not live in the child, and what waits is the parent's to send.
    for exporter in list(_exporters):
        exporter._start_afresh()


atexit.register(_shutdown_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
