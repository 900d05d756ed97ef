"""Where the time of a trace went, by its critical path.

The path goes from the end of the trace back to its start, always into the child that ended last. Time outside of the
children on the path is the span's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agent_gateway_client.traces.facts import SpanFacts, duration_text


class TimeSpent(NamedTuple):
    """The critical path of a trace.

    Attributes:
        total_ns: Nanoseconds from the start of the trace to its end.
        shares: Nanoseconds by owner, in display order: ``provider``, ``gateway``, ``network`` (between a call's span
            and its mirror, including the client library), ``unseen calls`` (spans of model calls without a gateway
            span) and ``agent`` (the rest). They add up to the total.
        network_is_agents: Whether the agent's share includes the network: without autologging there is no span for the
            client's call, so the two cannot be separated.
        on_path: By span id, the nanoseconds of the critical path in the span and its descendants.
    """

    total_ns: int
    shares: Mapping[str, int]
    network_is_agents: bool
    on_path: Mapping[str, int]

    def label(self, name: str) -> str:
        """Return the name of a share, for people."""
        return "agent and network" if name == "agent" and self.network_is_agents else name

    @property
    def percentages(self) -> dict[str, int]:
        """Whole percentages by name, without zero shares; they add up to 100."""
        if not self.total_ns:
            return {}
        exact = {name: 100 * ns / self.total_ns for name, ns in self.shares.items() if ns}
        rounded = {name: int(share) for name, share in exact.items()}
        missing = 100 - sum(rounded.values())
        for name in sorted(exact, key=lambda name: rounded[name] - exact[name])[:missing]:
            rounded[name] += 1
        return rounded


class _Visit(NamedTuple):
    """A part of a span on the path."""

    span: SpanFacts | None
    start: int
    end: int


def time_spent(spans: Sequence[SpanFacts]) -> TimeSpent:
    """Compute the critical path of a trace, and the shares of its time.

    A gateway's clock may differ from the caller's: a mirror outside its caller's span is moved into it. An open span
    counts until the end of the trace.

    Args:
        spans: In the order of :func:`~agent_gateway_client.traces.facts.facts_of`.
    """
    began = min((span.start_ns for span in spans), default=0)
    ended = max((span.end_ns or span.start_ns for span in spans), default=0)
    times = _times(spans, ended)
    children: dict[str | None, list[SpanFacts]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.depth else None, []).append(span)
    shares = dict.fromkeys(("provider", "gateway", "network", "unseen calls", "agent"), 0)
    on_path: dict[str, int] = {}
    waiting = [_Visit(None, began, ended)]
    while waiting:
        waited_for, start, end = waiting.pop()
        below = children.get(waited_for.span_id if waited_for else None, [])
        cursor, own = end, 0
        for child in sorted(below, key=lambda one: times[one.span_id][1], reverse=True):
            child_start = max(times[child.span_id][0], start)
            child_end = min(times[child.span_id][1], cursor)
            if child_start < child_end:
                own += cursor - child_end
                on_path[child.span_id] = child_end - child_start
                waiting.append(_Visit(child, child_start, child_end))
                cursor = child_start
        shares[_owner_of(waited_for, below)] += own + cursor - start
    kinds = {span.span_id: span.kind for span in spans}
    is_direct = any(span.kind == "gateway" and kinds.get(span.parent_id or "") == "own" for span in spans)
    return TimeSpent(ended - began, shares, is_direct and not shares["network"], on_path)


def time_spent_text(spans: Sequence[SpanFacts]) -> str:
    """Return a line about where the time of a trace went; ``""`` if that is unknown."""
    spent = time_spent(spans)
    parts = [
        f"{spent.label(name)} {percent} % ({duration_text(spent.shares[name])})"
        for name, percent in spent.percentages.items()
    ]
    return "Where the time went: " + ", ".join(parts) if parts else ""


def _owner_of(span: SpanFacts | None, below: Sequence[SpanFacts]) -> str:
    """Return the owner of a span's own time."""
    mirrored = any(child.kind == "gateway" for child in below)
    if span is None:
        return "agent"
    if span.kind == "attempt":
        # Its child is the mirror of a second gateway.
        return "network" if mirrored else "provider"
    if span.kind == "gateway":
        return "gateway"
    if span.is_model_call:
        return "network" if mirrored else "agent" if below else "unseen calls"
    return "agent"


def _times(spans: Sequence[SpanFacts], ended: int) -> dict[str, tuple[int, int]]:
    """Return each span's start and end by the agent's clock."""
    times: dict[str, tuple[int, int]] = {}
    shifts: dict[str, int] = {}
    for span in spans:
        shift = shifts.get(span.parent_id or "", 0)
        start, end = span.start_ns + shift, (ended if span.end_ns is None else span.end_ns) + shift
        parent = times.get(span.parent_id or "")
        if span.kind == "gateway" and parent and end - start <= parent[1] - parent[0]:
            moved = min(max(start, parent[0]), parent[1] - (end - start)) - start
            start, end, shift = start + moved, end + moved, shift + moved
        times[span.span_id] = (start, max(start, end))
        shifts[span.span_id] = shift
    return times
