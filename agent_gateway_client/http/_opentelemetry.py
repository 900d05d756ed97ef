"""Selects the parent span if OpenTelemetry's own instrumentation of an HTTP client is active too.

The instrumentation creates a span for each request and overwrites the ``traceparent`` with it. MLflow keeps its spans
in a separate context, which the instrumentation does not see, so its span is in another trace or missing in MLflow's.
The rule does not depend on the order of activation: the ``traceparent`` of an MLflow span, or one that the request
already has, is sent. If only a span of OpenTelemetry is active, or MLflow shares OpenTelemetry's spans (with
``MLFLOW_USE_DEFAULT_TRACER_PROVIDER=false``), the instrumentation's span is the parent: it is in the same trace.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import Token
from functools import cache
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current

from agent_gateway_client._guard import Guard
from agent_gateway_client.active_span import opentelemetry_trace_context
from agent_gateway_client.w3c import TRACEPARENT

_UTILS = "opentelemetry.instrumentation.utils"
_SCOPES = (
    "opentelemetry.instrumentation.aiohttp_client",
    "opentelemetry.instrumentation.requests",
    "opentelemetry.instrumentation.urllib3",
)
"""The instrumentations whose span is already current when our patch gets the request."""

guard = Guard(
    "Could not keep OpenTelemetry's instrumentation from replacing a request's trace context",
    "opentelemetry-instrumentation",
)


def instrumentation_is_loaded() -> bool:
    """Return whether any of OpenTelemetry's instrumentations of HTTP clients is imported."""
    return _UTILS in sys.modules


def suppress_otel_overwrite(headers: Any) -> AbstractContextManager[None]:
    """Return a context manager that suppresses the instrumentation of httpx and httpx2 if it would overwrite a header.

    The instrumentation keeps a header only if it creates no span; OpenTelemetry has a switch for that.

    Args:
        headers: The request's headers, or those of them that are known to be in it and include the ``traceparent``.
    """
    utils = sys.modules.get(_UTILS)
    if utils is None:
        return _NOTHING
    with guard:
        header = headers.get(TRACEPARENT)
        if header is not None and not _is_opentelemetrys(header):
            return _Suppressed(_switch(utils.suppress_http_instrumentation))
    return _NOTHING


_NOTHING = nullcontext()


class _Suppressed(AbstractContextManager[None]):
    """Does the same as OpenTelemetry's ``suppress_http_instrumentation()``, whose generators take longer."""

    __slots__ = ("_switch", "_token")

    def __init__(self, switch: Context) -> None:
        self._switch = switch

    def __enter__(self) -> None:
        self._token: Token[Context] = attach(Context({**get_current(), **self._switch}))

    def __exit__(self, *error: object) -> None:
        detach(self._token)


@cache
def _switch(suppress: Callable[[], AbstractContextManager[None]]) -> Context:
    """Return what OpenTelemetry's ``suppress_http_instrumentation()`` adds to a context."""
    token = attach(Context())
    try:
        with suppress():
            return get_current()
    finally:
        detach(token)


def is_by_instrumentation(header: str | None) -> bool:
    """Return whether a ``traceparent`` is from the instrumentation of aiohttp, requests or urllib3, to be replaced.

    Unlike that of httpx, they set the header before our patch gets the request, and their span is current by then.
    """
    if header is None:
        return False
    scope = getattr(trace.get_current_span(), "instrumentation_scope", None)
    return _is_current_span(header) and getattr(scope, "name", None) in _SCOPES and not _is_opentelemetrys(header)


def _is_current_span(header: str | None) -> bool:
    """Return whether a ``traceparent`` is that of OpenTelemetry's current span."""
    # Formatting the current span's header is faster than parsing the given one.
    current = opentelemetry_trace_context()
    return current is not None and header == current.traceparent


def _is_opentelemetrys(header: str | None) -> bool:
    """Return whether a ``traceparent`` is of OpenTelemetry's current span, and no MLflow span takes precedence."""
    if not _is_current_span(header):
        return False
    variables = sys.modules.get("mlflow.environment_variables")
    if variables is None or not variables.MLFLOW_USE_DEFAULT_TRACER_PROVIDER.get():
        return True
    # An MLflow span takes precedence even if it is the same span (MLFLOW_TRACE_PROPAGATE_TO_OTEL_CONTEXT): MLflow does
    # not record the instrumentation's span.
    return sys.modules["mlflow"].get_current_active_span() is None
