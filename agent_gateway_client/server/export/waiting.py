"""The calls that wait to be sent: bounded in number and in bytes, and due at times of their own.

A call is due at once when it comes in. If the destination does not know its trace yet, all calls of that trace are due
again after a pause that grows with the time they have waited.
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
"""Pause in terms of the time a trace has been looked for, so that a mirror is late by a tenth of that at most."""

_CALL_BYTES = 1_200
_ATTEMPT_BYTES = 500
"""Of a call and of an attempt without their texts, with what the objects around them take. Measured on CPython 3.11."""


@dataclass(slots=True, eq=False)
class Held:
    """A call that waits.

    Attributes:
        call: The call; its facts are complete.
        key: The trace that it belongs to.
        number: Grows with each call that comes in.
        since: When it came in, in seconds of the monotonic clock.
        size: Bytes, estimated.
        failures: How often the destination refused it when it was sent alone.
        sought_elsewhere: Whether its trace was looked for in other workspaces.
    """

    call: GatewayCall
    key: TraceKey
    number: int
    since: float
    size: int
    failures: int = 0
    sought_elsewhere: bool = False


@dataclass(slots=True, eq=False)
class _Trace:
    due: float
    since: float
    calls: dict[int, Held] = field(default_factory=dict)


class WaitingCalls:
    """The calls of one exporter that wait. Safe to use from several threads.

    Args:
        max_calls: Calls that may wait; beyond it the oldest are given up.
        max_bytes: Bytes that they may take; beyond it the oldest are given up.
    """

    def __init__(self, max_calls: int, max_bytes: int) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._traces: dict[TraceKey, _Trace] = {}
        self._held: dict[int, Held] = {}
        self._by_age: list[int] = []
        self._by_due: list[tuple[float, int, TraceKey]] = []
        self._bytes = 0
        self._numbers = itertools.count()
        self._pushes = itertools.count()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, call: GatewayCall, now: float) -> list[Held]:
        """Add a call that is due now. Returns the calls that were given up for it."""
        key = TraceKey(call.parent.trace_id, call.workspace)
        held = Held(call, key, next(self._numbers), now, size_of(call))
        return self.put([held], now)

    def put(self, calls: Iterable[Held], due: float) -> list[Held]:
        """Put calls back, which are due at the given time. Returns the calls that were given up for them."""
        with self._lock:
            for held in calls:
                self._held[held.number] = held
                self._bytes += held.size
                heapq.heappush(self._by_age, held.number)
                trace = self._traces.get(held.key)
                if trace is None:
                    trace = self._traces[held.key] = _Trace(due, held.since)
                    self._schedule(held.key, due)
                elif due < trace.due:
                    trace.due = due
                    self._schedule(held.key, due)
                trace.since = min(trace.since, held.since)
                trace.calls[held.number] = held
            return self._overflow()

    def take(self, now: float, most: int) -> list[Held]:
        """Take calls that are due, the oldest of each trace first, at most so many. They no longer count as waiting."""
        taken: list[Held] = []
        with self._lock:
            while self._by_due and self._by_due[0][0] <= now and len(taken) < most:
                due, _, key = heapq.heappop(self._by_due)
                trace = self._traces.get(key)
                if trace is None or trace.due != due:
                    continue
                for number in sorted(trace.calls)[: most - len(taken)]:
                    taken.append(self._remove(number))
                if key in self._traces:
                    self._schedule(key, due)
        return sorted(taken, key=lambda held: (held.failures, held.number))

    def next_due(self) -> float | None:
        """Return when the next call is due; ``None`` where none waits."""
        with self._lock:
            while self._by_due:
                due, _, key = self._by_due[0]
                trace = self._traces.get(key)
                if trace is not None and trace.due == due:
                    return due
                heapq.heappop(self._by_due)
            return None

    def make_due(self, due: float) -> None:
        """Let all that wait longer be due at the given time."""
        with self._lock:
            for key, trace in self._traces.items():
                if due < trace.due:
                    trace.due = due
                    self._schedule(key, due)

    def clear(self) -> int:
        """Give all up. Returns how many they were."""
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

    def _remove(self, number: int) -> Held:
        held = self._held.pop(number)
        self._bytes -= held.size
        trace = self._traces[held.key]
        del trace.calls[number]
        if not trace.calls:
            del self._traces[held.key]
        return held

    def _overflow(self) -> list[Held]:
        given_up: list[Held] = []
        while self._held and (len(self._held) > self._max_calls or self._bytes > self._max_bytes):
            number = heapq.heappop(self._by_age)
            if number in self._held:
                given_up.append(self._remove(number))
        if len(self._by_age) > 4 * len(self._held) + 1000:
            # Numbers of calls that were sent long ago.
            self._by_age = sorted(self._held)
        if len(self._by_due) > 4 * len(self._traces) + 1000:
            self._by_due = [(trace.due, next(self._pushes), key) for key, trace in self._traces.items()]
            heapq.heapify(self._by_due)
        return given_up


def pause_after(seconds: float) -> float:
    """Return how long to wait before a trace is looked for again that has been looked for so many seconds."""
    return min(max(seconds * _PAUSE_SHARE, FIRST_PAUSE_SECONDS), LAST_PAUSE_SECONDS)


def size_of(call: GatewayCall) -> int:
    """Estimate the bytes that a call takes while it waits."""
    texts = (call.endpoint, call.endpoint_id, call.request_type, call.server_address, call.error_type)
    size = _CALL_BYTES + _bytes_of((*texts, call.workspace, call.user))
    for attempt in call.attempts:
        size += _ATTEMPT_BYTES
        size += _bytes_of((attempt.provider, attempt.model, attempt.response_model))
        size += _bytes_of((attempt.error_type, attempt.finish_reason))
    for run in call.engine_runs:
        size += _ATTEMPT_BYTES + _bytes_of((run.model, run.error_type))
    return size


def _bytes_of(texts: Iterable[str | None]) -> int:
    return sum(sys.getsizeof(text) for text in texts if text is not None)
