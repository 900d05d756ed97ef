"""The queue of calls to send, bounded in calls and bytes.

A call is due immediately. If the destination does not know its trace yet, all calls of that trace are due again after a
pause that grows with the time they have waited.
"""

import heapq
import itertools
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.export.destination import TraceKey

FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 30.0
_PAUSE_SHARE = 0.1
"""Pause as a share of the time that a trace has been unknown, so that a mirror is late by at most a tenth of it."""

_CALL_BYTES = 1_200
_ATTEMPT_BYTES = 500
"""Sizes of a call and of an attempt without texts, including the surrounding objects. Measured on CPython 3.11."""


@dataclass(slots=True, eq=False)
class QueuedCall:
    """A queued call.

    Attributes:
        call: The call, with all its facts.
        key: Its trace.
        number: Increases with each call.
        since: When it was added, in seconds of the monotonic clock.
        size: Estimated bytes.
        failures: How often the destination refused it when it was sent alone.
        searched_other_workspaces: Whether its trace was looked up in other workspaces.
    """

    call: GatewayCall
    key: TraceKey
    number: int
    since: float
    size: int
    failures: int = 0
    searched_other_workspaces: bool = False


@dataclass(slots=True, eq=False)
class _Trace:
    due: float
    since: float
    calls: dict[int, QueuedCall] = field(default_factory=dict)


class WaitingCalls:
    """The queue of one exporter; thread-safe.

    Args:
        max_calls: Maximum number of calls; the oldest are dropped.
        max_bytes: Maximum size of all calls; the oldest are dropped.
    """

    def __init__(self, max_calls: int, max_bytes: int) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._traces: dict[TraceKey, _Trace] = {}
        self._held: dict[int, QueuedCall] = {}
        self._by_age: list[int] = []
        self._by_due: list[tuple[float, int, TraceKey]] = []
        self._bytes = 0
        self._numbers = itertools.count()
        self._pushes = itertools.count()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, call: GatewayCall, now: float) -> list[QueuedCall]:
        """Add a call that is due now. Returns the calls that were dropped for it."""
        key = TraceKey(call.parent.trace_id, call.workspace)
        queued = QueuedCall(call, key, next(self._numbers), now, size_of(call))
        return self.put([queued], now)

    def put(self, calls: Iterable[QueuedCall], due: float) -> list[QueuedCall]:
        """Put calls back, due at the given time. Returns the calls that were dropped for them."""
        with self._lock:
            for queued in calls:
                self._held[queued.number] = queued
                self._bytes += queued.size
                heapq.heappush(self._by_age, queued.number)
                trace = self._traces.get(queued.key)
                if trace is None:
                    trace = self._traces[queued.key] = _Trace(due, queued.since)
                    self._schedule(queued.key, due)
                elif due < trace.due:
                    trace.due = due
                    self._schedule(queued.key, due)
                trace.since = min(trace.since, queued.since)
                trace.calls[queued.number] = queued
            return self._overflow()

    def take(self, now: float, most: int) -> list[QueuedCall]:
        """Remove and return due calls, the oldest of each trace first.

        About ``most``: the calls of the last trace are not split, unless it has more than that on its own.
        """
        taken: list[QueuedCall] = []
        with self._lock:
            while self._by_due and self._by_due[0][0] <= now and len(taken) < most:
                due, _, key = heapq.heappop(self._by_due)
                trace = self._traces.get(key)
                if trace is None or trace.due != due:
                    continue
                taken += self._remove(key, trace, sorted(trace.calls)[:most])
                if trace.calls:
                    self._schedule(key, due)
        return sorted(taken, key=lambda queued: (queued.failures, queued.number))

    def next_due(self) -> float | None:
        """Return when the next call is due; ``None`` if the queue is empty."""
        with self._lock:
            while self._by_due:
                due, _, key = self._by_due[0]
                trace = self._traces.get(key)
                if trace is not None and trace.due == due:
                    return due
                heapq.heappop(self._by_due)
            return None

    def make_due(self, due: float) -> None:
        """Make all calls that are due later due at the given time."""
        with self._lock:
            for key, trace in self._traces.items():
                if due < trace.due:
                    trace.due = due
                    self._schedule(key, due)

    def clear(self) -> int:
        """Drop all calls. Returns how many there were."""
        with self._lock:
            count = len(self._held)
            self._traces.clear()
            self._held.clear()
            self._by_age.clear()
            self._by_due.clear()
            self._bytes = 0
            return count

    def _schedule(self, key: TraceKey, due: float) -> None:
        heapq.heappush(self._by_due, (due, next(self._pushes), key))

    def _remove(self, key: TraceKey, trace: _Trace, numbers: Iterable[int]) -> list[QueuedCall]:
        removed = [self._held.pop(number) for number in numbers]
        for queued in removed:
            self._bytes -= queued.size
            del trace.calls[queued.number]
        if not trace.calls:
            del self._traces[key]
        return removed

    def _overflow(self) -> list[QueuedCall]:
        given_up: list[QueuedCall] = []
        while self._held and (len(self._held) > self._max_calls or self._bytes > self._max_bytes):
            number = heapq.heappop(self._by_age)
            queued = self._held.get(number)
            if queued is not None:
                given_up += self._remove(queued.key, self._traces[queued.key], [number])
        if len(self._by_age) > 4 * len(self._held) + 1000:
            # Drop the numbers of calls that were sent long ago.
            self._by_age = sorted(self._held)
        if len(self._by_due) > 4 * len(self._traces) + 1000:
            self._by_due = [(trace.due, next(self._pushes), key) for key, trace in self._traces.items()]
            heapq.heapify(self._by_due)
        return given_up


def pause_after(seconds: float) -> float:
    """Return the pause in seconds before the next look-up of a trace that has been unknown for ``seconds``."""
    return min(max(seconds * _PAUSE_SHARE, FIRST_PAUSE_SECONDS), LAST_PAUSE_SECONDS)


def size_of(call: GatewayCall) -> int:
    """Estimate the size of a queued call in bytes."""
    texts = [call.endpoint, call.endpoint_id, call.request_type, call.server_address, call.error_type]
    texts += call.workspace, call.user
    for attempt in call.attempts:
        texts += attempt.provider, attempt.model, attempt.response_model, attempt.error_type, attempt.finish_reason
    for run in call.engine_runs:
        texts += run.model, run.error_type
    parts = len(call.attempts) + len(call.engine_runs)
    return _CALL_BYTES + _ATTEMPT_BYTES * parts + sum([sys.getsizeof(text) for text in texts if text is not None])
