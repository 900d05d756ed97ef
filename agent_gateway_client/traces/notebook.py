"""A joined trace in a notebook."""

from __future__ import annotations

from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.traces.read import JoinedTrace, read_joined
from agent_gateway_client.traces.waterfall import waterfall


class Waterfall:
    """A trace that a notebook draws when it is the last thing in a cell; :func:`show_trace` makes it.

    Attributes:
        joined: What is drawn.
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
        return "\n".join(lines)


def show_trace(trace_id: str | None = None, tracking_uri: str | None = None) -> Waterfall:
    """Draw a joined trace as a waterfall in a notebook: the agent's spans, and the gateway's below them.

    What this process has not sent yet is sent first. To draw more than one in a cell, give each to IPython's
    ``display()``.

    Args:
        trace_id: MLflow's id of the trace; by default, that of the last one that this process made.
        tracking_uri: Where MLflow is; by default, what MLflow is configured to use.

    Returns:
        The trace, which a notebook draws.

    Raises:
        ConfigurationError: No trace is named and this process has made none.
        NotFoundError: There is no such trace there, or MLflow does not answer.
    """
    import mlflow

    mlflow.flush_trace_async_logging()
    if trace_id is None:
        trace_id = mlflow.get_last_active_trace_id()
        if trace_id is None:
            raise ConfigurationError("This process has made no trace yet; name one: show_trace('tr-…').")
    return Waterfall(read_joined(trace_id, tracking_uri))
