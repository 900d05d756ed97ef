"""Decides whether a call is joined: its mirror is a child of the caller's span, and spans are within their parents.

The demo, the doctor and the tests use these rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlflow.entities import Span

from agent_gateway_client.names import GATEWAY_SPAN_PREFIX


def mirrors_in(spans: Sequence[Span]) -> list[Span]:
    """Return the gateway spans of the mirrors in a trace, by start time."""
    return _by_start(span for span in spans if span.name.startswith(GATEWAY_SPAN_PREFIX))


def children_of(spans: Sequence[Span], parent: Span) -> list[Span]:
    """Return the children of a span, by start time; those of a gateway span are its attempts."""
    return _by_start(span for span in spans if span.parent_id == parent.span_id)


def fault_of(spans: Sequence[Span], mirror: Span, caller_id: str, *, is_within: bool = True) -> str | None:
    """Return why a mirror does not join its call; ``None`` if it does.

    Args:
        spans: The spans of the caller's trace.
        mirror: The gateway span of the call.
        caller_id: The id of the span that made the call.
        is_within: Whether the mirror must be within the caller's span. Not if the caller did not wait for the end of
            the response, or if their clocks may differ.
    """
    if mirror.parent_id != caller_id:
        return f"the mirror is below the span {mirror.parent_id}, not below {caller_id}, which made the call"
    caller = next((span for span in spans if span.span_id == caller_id), None)
    if caller is None:
        return "the client's span is not in the trace"
    if is_within and not _is_within(mirror, caller):
        return f"the mirror is not inside the client's span {caller.name}: {_offsets(mirror, caller)}"
    if outside := [attempt.name for attempt in children_of(spans, mirror) if not _is_within(attempt, mirror)]:
        return f"attempts are not inside the mirror: {', '.join(outside)}"
    return None


def _by_start(spans: Iterable[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: span.start_time_ns)


def _is_within(inner: Span, outer: Span) -> bool:
    start, end = inner.start_time_ns, inner.end_time_ns
    if end is None or not outer.start_time_ns <= start <= end:
        return False
    # An open caller's span contains what has ended.
    return outer.end_time_ns is None or bool(end <= outer.end_time_ns)


def _offsets(inner: Span, outer: Span) -> str:
    start = f"{(inner.start_time_ns - outer.start_time_ns) / 1e6:+.3f} ms"
    if inner.end_time_ns is None or outer.end_time_ns is None:
        return f"start {start}, no end"
    return f"start {start}, end {(inner.end_time_ns - outer.end_time_ns) / 1e6:+.3f} ms"
