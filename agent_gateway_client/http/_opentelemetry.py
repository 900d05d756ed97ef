"""Which span is the parent where OpenTelemetry's own instrumentation of an HTTP client is active too.

It makes a span for each request and writes that span's ``traceparent`` over what is there. MLflow's spans are in a
context of their own, which it does not see: its span is in another trace, or is missing in MLflow's. The rule, whatever
was switched on first: a ``traceparent`` that names an MLflow span, or that came with the request, is what is sent.
Where only a span of OpenTelemetry is active, or MLflow's spans are OpenTelemetry's (with
``MLFLOW_USE_DEFAULT_TRACER_PROVIDER=false``), the instrumentation's span is the parent: it is in the same trace.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry import trace

from agent_gateway_client._guard import Guard
from agent_gateway_client.active_span import as_trace_context
from agent_gateway_client.w3c import TRACEPARENT

_UTILS = "opentelemetry.instrumentation.utils"
_SCOPES = (
    "opentelemetry.instrumentation.aiohttp_client",
    "opentelemetry.instrumentation.requests",
    "opentelemetry.instrumentation.urllib3",
)
"""The instrumentations whose span is the current one by the time that a request comes to us."""

_guard = Guard(
    "Could not keep OpenTelemetry's instrumentation from replacing a request's trace context",
    "opentelemetry-instrumentation",
)


def instrumentation_is_loaded() -> bool:
    """Tell whether any of OpenTelemetry's instrumentations of HTTP clients is imported."""
    return _UTILS in sys.modules


def suppress_otel_overwrite(headers: Any) -> AbstractContextManager[None]:
    """Return what keeps the instrumentation of httpx and httpx2 from a request, where it would overwrite a header.

    It leaves a header alone only where it makes no span, for which OpenTelemetry has a switch.
    """
    utils = sys.modules.get(_UTILS)
    if utils is None:
        return nullcontext()
    with _guard:
        header = headers.get(TRACEPARENT)
        if header is not None and not _is_opentelemetrys(header):
            switched_off: AbstractContextManager[None] = utils.suppress_http_instrumentation()
            return switched_off
    return nullcontext()


def is_by_instrumentation(header: str | None) -> bool:
    """Tell whether the instrumentation of aiohttp, requests or urllib3 has set a ``traceparent`` that makes room.

    Unlike that of httpx they set the header before the request is made, and their span is the current one by then.
    """
    if header is None:
        return False
    scope = getattr(trace.get_current_span(), "instrumentation_scope", None)
    return _names_current_span(header) and getattr(scope, "name", None) in _SCOPES and not _is_opentelemetrys(header)


def _names_current_span(header: str | None) -> bool:
    """Tell whether a ``traceparent`` names OpenTelemetry's current span."""
    # Formatting the one takes less than reading the other.
    current = as_trace_context(trace.get_current_span().get_span_context())
    return current is not None and header == current.traceparent


def _is_opentelemetrys(header: str | None) -> bool:
    """Tell whether a ``traceparent`` names OpenTelemetry's current span, and no span of MLflow's is to be preferred."""
    if not _names_current_span(header):
        return False
    variables = sys.modules.get("mlflow.environment_variables")
    if variables is None or not variables.MLFLOW_USE_DEFAULT_TRACER_PROVIDER.get():
        return True
    # Even the same span, with MLFLOW_TRACE_PROPAGATE_TO_OTEL_CONTEXT: the instrumentation's would not be MLflow's.
    return sys.modules["mlflow"].get_current_active_span() is None
