"""Decides what a request carries. Every HTTP stack asks here, for each retry and each hop of a redirect."""

from typing import Literal, NamedTuple, Protocol

from agent_gateway_client.active_span import current_trace_context, is_received
from agent_gateway_client.http import _notes
from agent_gateway_client.w3c import TRACEPARENT, TraceContext

Outcome = Literal["sent", "kept", "no span", "not a gateway"]


class KnowsGateways(Protocol):
    """One or more sets of gateways."""

    def covers(self, scheme: str, host: str, port: int | None, path: str) -> bool:
        """Tell what :meth:`Gateways.covers` does."""

    def near_miss(self, scheme: str, host: str, port: int | None, path: str) -> str | None:
        """Return what :meth:`Gateways.near_miss` does."""


class Headers(Protocol):
    """A request's headers."""

    def __contains__(self, name: str, /) -> bool: ...

    def __getitem__(self, name: str, /) -> str: ...

    def get(self, name: str, /) -> str | None: ...


class Decision(NamedTuple):
    """What happens to a request.

    Attributes:
        outcome: ``"sent"``: it gets the context; ``"kept"``: the user's own ``traceparent`` stays; ``"no span"``: it
            goes to a gateway, but no span is active; ``"not a gateway"``: it goes elsewhere.
        context: What is put on it, if anything.
    """

    outcome: Outcome
    context: TraceContext | None = None


_NOT_A_GATEWAY = Decision("not a gateway")
_KEPT = Decision("kept")
_NO_SPAN = Decision("no span")

_REASONS: dict[Outcome, str] = {
    "sent": "it goes to a gateway, and a span is active",
    "kept": "it goes to a gateway, and had a traceparent already",
    "no span": "it goes to a gateway, but no span is active",
    "not a gateway": "it does not go to a gateway",
}


def decide(
    method: str, scheme: str, host: str, port: int | None, path: str, headers: Headers, gateways: KnowsGateways
) -> Decision:
    """Decide whether a request gets the current trace context.

    Args:
        method: HTTP's, or :data:`~agent_gateway_client.http._notes.WEBSOCKET`.
        scheme: As for :meth:`Gateways.covers`.
        host: As for :meth:`Gateways.covers`.
        port: As for :meth:`Gateways.covers`.
        path: As for :meth:`Gateways.covers`.
        headers: Those that the request has already; they are only looked at where it goes to a gateway.
        gateways: Where it may be sent.
    """
    why, is_covered, is_assumed = None, gateways.covers(scheme, host, port, path), False
    if not is_covered:
        why = gateways.near_miss(scheme, host, port, path)
        if why is None and _notes.assumed is not None:
            is_assumed = _notes.assumed.covers(scheme, host, port, path)
            why = None if is_assumed else _notes.assumed.near_miss(scheme, host, port, path)
    if not is_covered and not is_assumed:
        decision = _NOT_A_GATEWAY
        if why is not None:
            _notes.warn_of_near_miss(_notes.shown(scheme, host, port, path), why)
    elif TRACEPARENT in headers and not is_received(headers[TRACEPARENT]):
        decision = _KEPT
    elif (context := current_trace_context()) is not None:
        decision = Decision("sent", context)
    else:
        decision = _NO_SPAN
        # Other methods ask for a list, a file or the gateway's health, and often before the program's first span.
        if method in ("POST", _notes.WEBSOCKET):
            _notes.warn_without_span(_notes.shown(scheme, host, port, path))
    if _notes.is_wanted():
        kept = headers.get(TRACEPARENT)
        reason = why or _REASONS[decision.outcome]
        url = _notes.shown(scheme, host, port, path)
        note = _notes.Note(method, url, decision.outcome, reason, decision.context, kept, why is not None, is_assumed)
        _notes.make_note(note)
    return decision
