"""Reports the decision for a request: at level DEBUG, to a recorder, and as a warning if it looks like a mistake.

Most requests of a program have nothing to do with a gateway, so a warning has a reason and is logged once.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.gateways import Gateways
from agent_gateway_client.w3c import TraceContext

WEBSOCKET = "WEBSOCKET"
"""The method recorded for a request that opens a websocket, to distinguish it from other GET requests."""


class Note(NamedTuple):
    """A request and the decision about it.

    Attributes:
        method: The HTTP method, or :data:`WEBSOCKET`.
        url: The URL without credentials and query.
        outcome: See :data:`~agent_gateway_client.http._decide.Outcome`.
        reason: The reason for the outcome, as a clause.
        context: The trace context that was added.
        kept: The ``traceparent`` that the request already had.
        near_miss: Whether it was probably meant to go to a gateway.
        is_assumed: Whether its gateway is only in :data:`assumed`.
    """

    method: str
    url: str
    outcome: str
    reason: str
    context: TraceContext | None = None
    kept: str | None = None
    near_miss: bool = False
    is_assumed: bool = False


recorder: Callable[[Note], None] | None = None
"""Called with each note if the doctor runs the program."""


assumed: Gateways | None = None
"""The doctor's gateways, which the program it runs may not have configured itself."""


def is_wanted() -> bool:
    """Return whether a recorder or the log needs notes; otherwise none are created."""
    return recorder is not None or logger.isEnabledFor(logging.DEBUG)


def is_wanted_of_all() -> bool:
    """Return whether :func:`~agent_gateway_client.http._decide.decide` is to see all requests, wherever they go."""
    return assumed is not None or recorder is not None or logger.isEnabledFor(logging.DEBUG)


def make_note(note: Note) -> None:
    """Log a note and pass it to the recorder."""
    if note.context is not None:
        span = f", span {note.context.span_id:016x} of trace {note.context.trace_id:032x}"
    else:
        span = f", traceparent {note.kept}" if note.kept else ""
    logger.debug("%s: %s (%s%s)", note.url, note.outcome, note.reason, span)
    if recorder is not None:
        recorder(note)


def shown(scheme: str, host: str, port: int | None, path: str) -> str:
    """Return a URL for the log, without the query."""
    netloc = f"[{host}]" if ":" in host else host
    return f"{scheme}://{netloc}{f':{port}' if port else ''}{path.partition('?')[0]}"


def warn_without_span(url: str) -> None:
    """Warn once that a request was sent to its gateway while no span was active."""
    warn_once(
        "decide.no_span",
        "A request to the gateway (%s) was sent while no span was active, so its mirror joins no trace. Make the call "
        "inside mlflow.start_span(), a function with @mlflow.trace, or under autolog. Where there is a span, MLflow "
        "could not record it: call mlflow.set_tracking_uri() and mlflow.set_experiment() first.",
        url,
    )


def warn_of_near_miss(url: str, why: str) -> None:
    """Warn once per reason that a request missed a gateway by little."""
    warn_once(f"decide.near_miss {why}", "No trace context is sent to %s: %s.", url, why)
