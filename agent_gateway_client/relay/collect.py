"""Holds the spans of calls until the calls can be assembled.

What happens to a span depends on what is known of its part of the trace:

=====================================  ====================================================================
its root has arrived                   mirrored ``settle_seconds`` after the root; again when more spans arrive
no root yet, a model call              mirrored alone after ``wait_seconds`` if its place is certain
no root yet, anything else             kept for ``call_seconds``: the call may still be running
mirrored, and ``wait_seconds`` over    forgotten
=====================================  ====================================================================

Mirroring a call twice is harmless: its ids are the gateway's. Everything is bounded, and dropped spans are counted.
"""

import heapq
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agent_gateway_client.relay.assemble import Part, TraceView, call_of
from agent_gateway_client.relay.dialects import ENGINE, dialect_of
from agent_gateway_client.relay.limits import Limits
from agent_gateway_client.relay.spans import IncomingSpan
from agent_gateway_client.server.call import GatewayCall

_NEVER = float("inf")
_ROOM = 0.8
"""Share of the limit that is still held after the oldest unfinished spans were dropped."""


@dataclass(slots=True)
class _Held:
    """The spans held of one trace.

    Attributes:
        spans: The spans, by id.
        sent: The signature of each part that was mirrored, by the id of its top span.
        due: When to examine it next, in seconds on the collection's clock.
        latest: When its latest span arrived.
    """

    spans: dict[int, IncomingSpan] = field(default_factory=dict)
    sent: dict[int, tuple[int, ...]] = field(default_factory=dict)
    due: float = _NEVER
    latest: float = 0.0


class Collection:
    """Collects spans by trace, and returns the calls that are complete.

    Args:
        limits: Limits on what is held, and for how long.
        clock: Returns seconds; only differences matter.

    Attributes:
        counts: For ``GET /health``. Spans: ``recognised``, ``unrecognised``, ``dropped`` (limits), ``orphaned``
            (the root never arrived). Calls: ``mirrored``.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._traces: OrderedDict[int, _Held] = OrderedDict()
        self._agenda: list[tuple[float, int]] = []
        self._held = 0

    @property
    def held(self) -> int:
        """Number of spans held."""
        return self._held

    def has_room(self) -> bool:
        """Return whether more spans fit. To make room, the oldest traces without recent spans are dropped."""
        with self._lock:
            if self._held >= self._limits.spans:
                self._make_room()
            return self._held < self._limits.spans

    def add(self, spans: Sequence[IncomingSpan]) -> None:
        """Add the spans of a request."""
        now = self._clock()
        with self._lock:
            for span in spans:
                known = ENGINE.claims(span) or dialect_of(span) is not None
                self.counts["recognised" if known else "unrecognised"] += 1
                self._add(span, now)

    def _add(self, span: IncomingSpan, now: float) -> None:
        held = self._traces.get(span.trace_id)
        if held is None:
            held = self._traces[span.trace_id] = _Held()
        if span.span_id in held.spans:
            # A client that got no answer retries its batch.
            return
        if len(held.spans) >= self._limits.trace_spans:
            self.counts["dropped"] += 1
            return
        span.arrived = held.latest = now
        held.spans[span.span_id] = span
        self._held += 1
        self._traces.move_to_end(span.trace_id)
        self._schedule(span.trace_id, held, now + self._limits.settle_seconds)

    def due(self, *, all_of_them: bool = False) -> list[GatewayCall]:
        """Return the calls that are complete.

        Args:
            all_of_them: Wait for no further spans, because the relay is stopping.
        """
        now = self._clock()
        calls: list[GatewayCall] = []
        with self._lock:
            while self._agenda and (all_of_them or self._agenda[0][0] <= now):
                due, trace_id = heapq.heappop(self._agenda)
                held = self._traces.get(trace_id)
                # A trace that was examined in the meantime has a different time.
                if held is not None and held.due == due:
                    held.due = _NEVER
                    calls += self._look_at(trace_id, held, _NEVER if all_of_them else now)
        self.counts["mirrored"] += len(calls)
        return calls

    def next_due(self) -> float | None:
        """Return the seconds until a call may be complete; ``None`` if nothing is held."""
        with self._lock:
            return max(0.0, self._agenda[0][0] - self._clock()) if self._agenda else None

    def _look_at(self, trace_id: int, held: _Held, now: float) -> list[GatewayCall]:
        view = TraceView(held.spans)
        calls = []
        over = []
        next_due = _NEVER
        for part in view.parts:
            ready = self._ready_at(part)
            signature = part.signature
            if ready <= now and held.sent.get(part.top.span_id) != signature:
                if (call := call_of(part, view)) is not None:
                    calls.append(call)
                held.sent[part.top.span_id] = signature
            expires = self._expires_at(part)
            if expires <= now:
                over.append(part)
            else:
                next_due = min(next_due, expires, ready if ready > now else _NEVER)
        for part in over:
            self._forget(part, held)
        if not held.spans:
            del self._traces[trace_id]
        elif next_due < _NEVER:
            self._schedule(trace_id, held, next_due)
        return calls

    def _ready_at(self, part: Part) -> float:
        patience = self._limits.settle_seconds if part.rooted and not _is_engine(part) else self._limits.wait_seconds
        return part.top.arrived + patience

    def _expires_at(self, part: Part) -> float:
        latest = max(span.arrived for span in part.members)
        if part.rooted:
            return latest + self._limits.wait_seconds
        return latest + self._limits.call_seconds

    def _forget(self, part: Part, held: _Held) -> None:
        if not part.rooted and part.attempts and part.top.local_parent:
            self.counts["orphaned"] += len(part.attempts)
        for span in part.members:
            del held.spans[span.span_id]
        held.sent.pop(part.top.span_id, None)
        self._held -= len(part.members)

    def _schedule(self, trace_id: int, held: _Held, due: float) -> None:
        if due < held.due:
            held.due = due
            heapq.heappush(self._agenda, (due, trace_id))

    def _make_room(self) -> None:
        enough = int(self._limits.spans * _ROOM)
        long_ago = self._clock() - self._limits.wait_seconds
        for trace_id, held in list(self._traces.items()):
            if self._held <= enough or held.latest > long_ago:
                return
            self._held -= len(held.spans)
            self.counts["dropped"] += len(held.spans)
            del self._traces[trace_id]


def _is_engine(part: Part) -> bool:
    return ENGINE.claims(part.top)
