"""Upstream gateways, which are providers of this one: requests to them carry the trace context, others do not.

Requests are covered by the same hooks in httpx, httpx2 and aiohttp that the client half of this package uses. Their
``traceparent`` has the caller's trace and the attempt's span, so the upstream's mirror is a child of that attempt.
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
    """The requests that a gateway sends to serve a call, until the call ends.

    It is the :data:`~agent_gateway_client.active_span.model_call` of the code that serves the call.

    Args:
        call: The call.
        gateways: The upstream gateways.
        attempt_span_id: Returns the id that the span of the current attempt will have.

    Attributes:
        received: The caller's ``traceparent``. It is replaced on requests of a gateway that forwards its callers'
            headers: the upstream's mirror would else be a child of the caller's span.
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
        """The upstream gateways; none after the call has ended, for code that is still running."""
        return NO_GATEWAYS if self._is_over else self._gateways

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return the context of the current attempt's span."""
        return active if self._is_over else self._call.parent._replace(span_id=self._attempt_span_id(self._call))

    @property
    def _is_over(self) -> bool:
        # Its spans may be exported by now.
        return self._call.end_time_ns is not None


def span_id_of_attempt_under_way(call: GatewayCall) -> int:
    """Return the span id of the current attempt, which is started if the gateway has not started one."""
    attempt = call.attempt_under_way()
    return span_id_of_new_attempt(call) if attempt is None else attempt.span_id


def span_id_of_new_attempt(call: GatewayCall) -> int:
    """Start an attempt without further facts and return its span id; the call's if it has too many attempts."""
    return call.attempt().span_id if len(call.attempts) < MAX_ATTEMPTS else call.span_id


def instrument_upstreams(urls: Iterable[str] | None = None) -> Gateways:
    """Return the upstream gateways, and instrument the HTTP clients if there are any.

    Args:
        urls: ``scheme://host[:port][/prefix]`` each. By default those in ``AGENT_GATEWAY_URLS``.

    Raises:
        ConfigurationError: A value is not a URL.
    """
    gateways = Gateways.from_environment() if urls is None else Gateways(urls)
    if gateways:
        _instrument_once()
    return gateways


def instrument_upstreams_or_warn() -> Gateways:
    """Do the same for ``AGENT_GATEWAY_URLS``, with a warning in place of an error."""
    try:
        return instrument_upstreams()
    except ConfigurationError as error:
        warn_once("upstreams", "Requests to upstream gateways carry no trace context. %s", error)
        return NO_GATEWAYS


@cache
def _instrument_once() -> Instrumentation:
    """Apply the patches once, for the life of the process; each request's call provides its gateways."""
    return Instrumentation(NO_GATEWAYS, for_adapter=True)
