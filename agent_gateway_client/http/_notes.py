"""Says what happened to a request: at level DEBUG, to a recorder, and as a warning where it looks like a mistake.

Most requests of a program have nothing to do with a gateway, so a warning needs a reason, and is given once.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.gateways import Gateways
from agent_gateway_client.w3c import TraceContext

WEBSOCKET = "WEBSOCKET"
"""The method of a request that opens a websocket, which HTTP does not tell from other GET requests."""


class Note(NamedTuple):
    """A request, and what was decided about it.

    Attributes:
        method: HTTP's, or :data:`WEBSOCKET`.
        url: Where it goes, without credentials and query.
        outcome: See :class:`~agent_gateway_client.http._decide.Decision`.
        reason: Why, in a sentence.
        context: What was put on it.
        kept: The ``traceparent`` that it had already.
        near_miss: Whether it was probably meant to go to a gateway.
        is_assumed: Whether only :data:`assumed` names its gateway.
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
"""Is called with each note, where the doctor runs the program."""


assumed: Gateways | None = None
"""Gateways that the program itself may not name, where the doctor runs it."""


def is_wanted() -> bool:
    """Tell whether anybody reads notes; otherwise they need not be made."""
    return recorder is not None or logger.isEnabledFor(logging.DEBUG)


def make_note(note: Note) -> None:
    """Log a note and hand it to the recorder."""
    if note.context is not None:
        span = f", span {note.context.span_id:016x} of trace {note.context.trace_id:032x}"
    else:
        span = f", traceparent {note.kept}" if note.kept else ""
    logger.debug("%s: %s (%s%s)", note.url, note.outcome, note.reason, span)
    if recorder is not None:
        recorder(note)


def shown(scheme: str, host: str, port: int | None, path: str) -> str:
    """Return a URL as it may be logged."""
    netloc = f"[{host}]" if ":" in host else host
    return f"{scheme}://{netloc}{f':{port}' if port else ''}{path.partition('?')[0]}"


def warn_without_span(url: str) -> None:
    """Say once that a request went to its gateway while no span was active."""
    warn_once(
        "decide.no_span",
        "A request to the gateway (%s) was sent while no span was active, so its mirror joins no trace. Make the call "
        "inside mlflow.start_span(), a function with @mlflow.trace, or under autolog. Where there is a span, MLflow "
        "could not record it: call mlflow.set_tracking_uri() and mlflow.set_experiment() first.",
        url,
    )


def warn_of_near_miss(url: str, why: str) -> None:
    """Say once for each reason that a request almost went to a gateway."""
    warn_once(f"decide.near_miss {why}", "No trace context is sent to %s: %s.", url, why)
