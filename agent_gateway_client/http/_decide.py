"""Decides whether a request gets the trace context. Called by all HTTP stacks, for each retry and redirect hop."""

from typing import Literal, Protocol

from agent_gateway_client.active_span import current_trace_context, is_received
from agent_gateway_client.gateways import Gateways
from agent_gateway_client.http import _notes
from agent_gateway_client.w3c import TRACEPARENT, TraceContext

Outcome = Literal["sent", "kept", "no span", "not a gateway"]
"""The decision for one request: it gets the context, its own ``traceparent`` is kept, it goes to a gateway but no span
is active, or it goes elsewhere."""


class Headers(Protocol):
    """A request's headers."""

    def __contains__(self, name: str, /) -> bool: ...

    def __getitem__(self, name: str, /) -> str: ...

    def get(self, name: str, /) -> str | None: ...


_REASONS: dict[Outcome, str] = {
    "sent": "it goes to a gateway, and a span is active",
    "kept": "it goes to a gateway, and had a traceparent already",
    "no span": "it goes to a gateway, but no span is active",
    "not a gateway": "it does not go to a gateway",
}


def decide(
    method: str,
    scheme: str,
    host: str,
    port: int | None,
    path: str,
    headers: Headers,
    gateways: Gateways,
    is_covered: bool,
) -> tuple[Outcome, TraceContext | None]:
    """Decide whether a request gets the current trace context.

    Args:
        method: The HTTP method, or :data:`~agent_gateway_client.http._notes.WEBSOCKET`.
        scheme: As for :meth:`Gateways.covers`.
        host: As for :meth:`Gateways.covers`.
        port: As for :meth:`Gateways.covers`.
        path: As for :meth:`Gateways.covers`.
        headers: The request's headers; read only if it goes to a gateway.
        gateways: The gateways that may get the trace context.
        is_covered: What :meth:`Gateways.covers` returns for them.

    Returns:
        The outcome, and the trace context to add, if any.
    """
    outcome: Outcome
    context, why, is_assumed = None, None, False
    if not is_covered:
        why = gateways.near_miss(scheme, host, port, path)
        if why is None and _notes.assumed is not None:
            is_assumed = _notes.assumed.covers(scheme, host, port, path)
            why = None if is_assumed else _notes.assumed.near_miss(scheme, host, port, path)
    if not is_covered and not is_assumed:
        outcome = "not a gateway"
        if why is not None:
            _notes.warn_of_near_miss(_notes.shown(scheme, host, port, path), why)
    elif TRACEPARENT in headers and not is_received(headers[TRACEPARENT]):
        outcome = "kept"
    elif (context := current_trace_context()) is not None:
        outcome = "sent"
    else:
        outcome = "no span"
        # Requests with other methods (lists, files, health checks) are often sent before the program's first span.
        if method in ("POST", _notes.WEBSOCKET):
            _notes.warn_without_span(_notes.shown(scheme, host, port, path))
    if _notes.is_wanted():
        kept = headers.get(TRACEPARENT)
        reason = why or _REASONS[outcome]
        url = _notes.shown(scheme, host, port, path)
        note = _notes.Note(method, url, outcome, reason, context, kept, why is not None, is_assumed)
        _notes.make_note(note)
    return outcome, context
