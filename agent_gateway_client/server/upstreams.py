"""Gateways behind this one: the trace context goes on to them, below the attempt that asks them, and to nobody else.

A request is reached where the client's half of this package reaches it, at the one function of httpx, httpx2 or aiohttp
through which it goes. What is put on it is the caller's trace with the attempt's span as the parent, so the mirror that
the next gateway makes is below that attempt.
"""

from collections.abc import Callable, Iterable
from functools import cache

from agent_gateway_client._log import warn_once
from agent_gateway_client.active_span import ModelCall
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.http._process_wide import Instrumentation
from agent_gateway_client.server.call import MAX_ATTEMPTS, GatewayCall
from agent_gateway_client.w3c import TraceContext


class UpstreamRequests(ModelCall):
    """The requests that a gateway makes to serve a call, for as long as the call lasts.

    It is the :data:`~agent_gateway_client.active_span.model_call` of the code that serves the call.

    Args:
        call: The call.
        gateways: The gateways behind this one.
        attempt_span_id: Returns the id that the span of the attempt under way will have.

    Attributes:
        received: The caller's ``traceparent``. A request that has it was given it by a gateway that hands its callers'
            headers on; in the next gateway's eyes, its parent would be the caller.
    """

    def __init__(
        self, call: GatewayCall, gateways: Gateways, attempt_span_id: Callable[[GatewayCall], int] | None = None
    ) -> None:
        self.received = call.parent.traceparent
        self._call = call
        self._gateways = gateways
        self._attempt_span_id = attempt_span_id or span_id_of_attempt_under_way

    @property
    def gateways(self) -> Gateways:
        """Those behind this gateway; none for what is still running when the call is over."""
        return NO_GATEWAYS if self._is_over else self._gateways

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return the span of the attempt under way."""
        return active if self._is_over else self._call.parent._replace(span_id=self._attempt_span_id(self._call))

    @property
    def _is_over(self) -> bool:
        # Its spans may have been sent.
        return self._call.end_time_ns is not None


def span_id_of_attempt_under_way(call: GatewayCall) -> int:
    """Return the id of its span. Where the gateway has begun none, asking another gateway begins one."""
    attempt = call.attempt_under_way()
    return span_id_of_new_attempt(call) if attempt is None else attempt.span_id


def span_id_of_new_attempt(call: GatewayCall) -> int:
    """Begin an attempt of which no more is known; return the id of its span, or of the call's if it has too many."""
    return call.attempt().span_id if len(call.attempts) < MAX_ATTEMPTS else call.span_id


def reached_gateways(urls: Iterable[str] | None = None) -> Gateways:
    """Return the gateways behind this one, and see to it that requests to them are reached.

    Args:
        urls: ``scheme://host[:port][/prefix]`` each. By default those in ``AGENT_GATEWAY_URLS``.

    Raises:
        ConfigurationError: A name is no URL.
    """
    gateways = Gateways.from_environment() if urls is None else Gateways(urls)
    if gateways:
        _reach_requests()
    return gateways


def reached_gateways_at_request_time() -> Gateways:
    """Return those in ``AGENT_GATEWAY_URLS``; none where it holds what is no URL, which is said once."""
    try:
        return reached_gateways()
    except ConfigurationError as error:
        warn_once("upstreams", "No trace context is passed on to other gateways. %s", error)
        return NO_GATEWAYS


@cache
def _reach_requests() -> Instrumentation:
    """Put the patches on, once and for the life of the process; each request's own call says where it may go."""
    return Instrumentation(NO_GATEWAYS, for_adapter=True)
