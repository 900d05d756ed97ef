"""Whose span is the parent of a request that is sent now: a model call's own, or the innermost active one."""

import sys
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanContext

from agent_gateway_client._guard import Guard
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.w3c import TRACEPARENT, TraceContext, extract

_guard = Guard("Could not read MLflow's active span; only OpenTelemetry's current span is sent", "mlflow-tracing")


class ModelCall:
    """A framework's call of a model, which may know a better parent for its requests than the active span.

    An adapter overrides what it knows. None of the methods may raise.

    Attributes:
        received: The ``traceparent`` that a gateway was sent with the call it serves. A request that has it is given
            the call's own parent instead.
    """

    __slots__ = ()

    received: str | None = None

    @property
    def gateways(self) -> Gateways:
        """Where the call's requests may carry trace context to, beside the gateways named elsewhere."""
        return NO_GATEWAYS

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return the parent of a request that is sent now, given what it would be without this call."""
        return active

    def answered(self, response: Any) -> None:
        """Take note of the response to a request of this call that went through httpx or httpx2."""

    def failed(self, error: BaseException) -> None:
        """Take note that a request of this call through httpx or httpx2 was given up."""


model_call: ContextVar[ModelCall | None] = ContextVar("agent_gateway_client.model_call", default=None)
"""The call of a model whose own code is running now; set by a framework's adapter, and only for that long.
In a gateway, the call that it serves."""


def is_received(traceparent: str | None) -> bool:
    """Tell whether a gateway was sent this ``traceparent`` with the call it serves, and now sends it on as it is.

    It names the caller's span, which is not the innermost one by then.
    """
    call = model_call.get()
    return call is not None and traceparent is not None and traceparent == call.received


def is_local_span(traceparent: str) -> bool:
    """Tell whether a ``traceparent`` names a span that this process made and that has not been exported yet."""
    named = extract([(TRACEPARENT, traceparent)])
    if named is None:
        return False
    for context in (_active_mlflow_span_context(), trace.get_current_span().get_span_context()):
        if context is not None and (context.trace_id, context.span_id) == (named.trace_id, named.span_id):
            return not context.is_remote
    manager = sys.modules.get("mlflow.tracing.trace_manager")
    if manager is None:
        return False
    known = manager.InMemoryTraceManager.get_instance()
    return known.get_span_from_id(mlflow_trace_id(named.trace_id), f"{named.span_id:016x}") is not None


def current_trace_context() -> TraceContext | None:
    """Return the innermost active MLflow span's context, else OpenTelemetry's current span's, else ``None``.

    MLflow keeps its active span in a context of its own by default, which OpenTelemetry's functions do not see. A span
    that is not sampled is returned with its flags as they are. The span of :data:`model_call` goes first.
    """
    active = active_trace_context()
    call = model_call.get()
    return call.trace_context(active) if call else active


def as_span(span: Any) -> trace.Span:
    """Return OpenTelemetry's span behind a span of MLflow, or the same where it is one of OpenTelemetry's.

    Raises:
        ConfigurationError: It is not a span.
    """
    # MLflow has no public way to it.
    inner = getattr(span, "_span", span)
    if not isinstance(inner, trace.Span):
        raise ConfigurationError(f"span must be a span of MLflow or OpenTelemetry, not {type(span).__qualname__}.")
    return inner


def active_trace_context() -> TraceContext | None:
    """Return what :func:`current_trace_context` does where there is no :data:`model_call`."""
    mlflows = as_trace_context(_active_mlflow_span_context())
    return mlflows or as_trace_context(trace.get_current_span().get_span_context())


_latest: tuple[SpanContext | None, TraceContext | None] = (None, None)
"""What :func:`as_trace_context` was given last, and what it returned. Replaced as a whole, so it needs no lock."""


def as_trace_context(context: SpanContext | None) -> TraceContext | None:
    """Return an OpenTelemetry span's context as a :class:`TraceContext`; ``None`` where it is not valid."""
    global _latest
    # A span keeps its context, which never changes; reading it takes as long as finding it.
    latest, found = _latest
    if context is latest:
        return found
    # MLflow's no-op span, which it hands out when it could not make one, has no context at all.
    if context is None or not context.is_valid:
        return None
    state = context.trace_state
    found = TraceContext(context.trace_id, context.span_id, context.trace_flags, state.to_header() if state else "")
    _latest = context, found
    return found


def _active_mlflow_span_context() -> SpanContext | None:
    """Return the context of MLflow's current span, valid or not; ``None`` where MLflow is not imported.

    The one place that touches MLflow's tracing internals on the client: its public ``get_current_active_span()`` does
    not show a span that is not sampled.
    """
    provider = sys.modules.get("mlflow.tracing.provider")
    if provider is None:
        return None
    with _guard:
        # MLflow's own functions ask os.environ first whether it shares OpenTelemetry's context, which takes longer than
        # all else here. Where it does, this context has no span.
        return trace.get_current_span(provider.mlflow_runtime_context.get_current()).get_span_context()
    return None
