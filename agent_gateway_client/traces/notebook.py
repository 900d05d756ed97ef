"""A joined trace in a notebook."""

from __future__ import annotations

import time

from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.traces.read import JoinedTrace, missing_parents_text, read_joined
from agent_gateway_client.traces.time_spent import time_spent_text
from agent_gateway_client.traces.waterfall import waterfall

_RECENT_S = 10.0
_QUIET_S = 1.0
_PATIENCE_S = 20.0
_POLL_S = 0.1


class Waterfall:
    """A trace that a notebook draws as the result of a cell; returned by :func:`show_trace`.

    Attributes:
        joined: The trace.
    """

    def __init__(self, joined: JoinedTrace) -> None:
        self.joined = joined

    def _repr_html_(self) -> str:
        return waterfall(self.joined)

    def __repr__(self) -> str:
        lines = [f"trace {self.joined.trace_id}"]
        lines += [
            "  " * (span.depth + 1) + "  ".join(filter(None, (span.name, span.duration, span.status, span.tokens)))
            for span in self.joined.spans
        ]
        lines += filter(None, (missing_parents_text(self.joined.spans), time_spent_text(self.joined.spans)))
        return "\n".join(lines)


def show_trace(trace_id: str | None = None, tracking_uri: str | None = None) -> Waterfall:
    """Draw a joined trace as a waterfall in a notebook: the agent's spans, and the gateway's below them.

    Sends this process's queued spans first. The gateways' spans arrive shortly after a trace has ended, so for a recent
    trace this waits until nothing new has arrived for a second. To draw several traces in a cell, pass each to
    IPython's ``display()``.

    Args:
        trace_id: MLflow's id of the trace; by default that of this process's last trace.
        tracking_uri: The MLflow server or store; by default the one that MLflow is configured to use.

    Returns:
        The trace, which a notebook draws.

    Raises:
        ConfigurationError: No trace is given and this process has made none.
        NotFoundError: The trace does not exist, or MLflow does not answer.
    """
    import mlflow

    mlflow.flush_trace_async_logging()
    if trace_id is None:
        trace_id = mlflow.get_last_active_trace_id()
        if trace_id is None:
            raise ConfigurationError("This process has made no trace yet; pass a trace's id: show_trace('tr-…').")
    return Waterfall(_read_settled(trace_id, tracking_uri))


def _read_settled(trace_id: str, tracking_uri: str | None) -> JoinedTrace:
    deadline = time.monotonic() + _PATIENCE_S
    joined = read_joined(trace_id, tracking_uri)
    changed = time.monotonic()
    while _is_recent(joined) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        began = time.monotonic()
        again = read_joined(trace_id, tracking_uri)
        now = time.monotonic()
        if again.spans != joined.spans or again.linked != joined.linked:
            joined, changed = again, now
        # A server that is slow to read from is also slow to write.
        elif _is_complete(joined) and now - changed > _QUIET_S + 5 * (now - began):
            break
    return joined


def _is_complete(joined: JoinedTrace) -> bool:
    """Return whether the linked traces are complete: MLflow stores their spans one by one, the root last."""
    linked = (joined.linked.get(span.linked_trace_id, []) for span in joined.spans if span.linked_trace_id)
    return all(any(own.parent_id is None for own in spans) for spans in linked)


def _is_recent(joined: JoinedTrace) -> bool:
    last_ns = max((span.end_ns or span.start_ns for span in joined.spans), default=0)
    return time.time_ns() - last_ns < _RECENT_S * 1e9
