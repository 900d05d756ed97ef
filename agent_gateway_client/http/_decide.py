"""Decides what a request carries. Every HTTP stack asks here, for each retry and each hop of a redirect."""

from typing import Literal, NamedTuple, Protocol

from agent_gateway_client.active_span import current_trace_context, is_received
from agent_gateway_client.w3c import TraceContext

Outcome = Literal["sent", "kept", "no span", "not a gateway"]


class KnowsGateways(Protocol):
    """One or more sets of gateways."""

    def covers(self, scheme: str, host: str, port: int | None, path: str) -> bool:
        """Tell what :meth:`Gateways.covers` does."""


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


def decide(
    scheme: str, host: str, port: int | None, path: str, traceparent: str | None, gateways: KnowsGateways
) -> Decision:
    """Decide whether a request gets the current trace context.

    Args:
        scheme: As for :meth:`Gateways.covers`.
        host: As for :meth:`Gateways.covers`.
        port: As for :meth:`Gateways.covers`.
        path: As for :meth:`Gateways.covers`.
        traceparent: The header that the request has already; ``None`` for none.
        gateways: Where it may be sent.
    """
    if not gateways.covers(scheme, host, port, path):
        return _NOT_A_GATEWAY
    if traceparent is not None and not is_received(traceparent):
        return _KEPT
    context = current_trace_context()
    return Decision("sent", context) if context is not None else _NO_SPAN
