"""Finds the parent span of a request that is sent now: that of a model call, or the innermost active span."""

import sys
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import SpanContext

from agent_gateway_client._guard import Guard
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.w3c import TRACEPARENT, TraceContext, extract

_guard = Guard("Could not read MLflow's active span; only OpenTelemetry's current span is sent", "mlflow-tracing")


class ModelCall:
    """A framework's model call, which may have a more specific parent for its requests than the active span.

    Adapters override the methods that they need. The methods must not raise.

    Attributes:
        received: In a gateway, the ``traceparent`` of the call that it serves. On a request that already has this
            header, it is replaced by the call's own parent.
    """

    __slots__ = ()

    received: str | None = None

    @property
    def gateways(self) -> Gateways:
        """Gateways for this call's requests, in addition to the configured ones."""
        return NO_GATEWAYS

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return the parent of a request that is sent now; ``active`` is the parent without this call."""
        return active

    def answered(self, response: Any) -> None:
        """Handle the response to a request of this call that was sent with httpx or httpx2."""

    def failed(self, error: BaseException) -> None:
        """Handle the failure of a request of this call that was sent with httpx or httpx2."""


model_call: ContextVar[ModelCall | None] = ContextVar("agent_gateway_client.model_call", default=None)
"""The model call whose code is running now; set by a framework's adapter only while the framework's code runs.
In a gateway, the call that it serves."""


def is_received(traceparent: str | None) -> bool:
    """Return whether a gateway forwards the ``traceparent`` of the call that it serves.

    Its parent is the caller's span, which is no longer the innermost one.
    """
    call = model_call.get()
    return call is not None and traceparent is not None and traceparent == call.received


def is_local_span(traceparent: str) -> bool:
    """Return whether a ``traceparent`` is that of a span of this process that has not been exported yet."""
    parent = extract([(TRACEPARENT, traceparent)])
    if parent is None:
        return False
    for context in (_mlflow_context(), get_current()):
        span = trace.get_current_span(context).get_span_context() if context is not None else None
        if span is not None and (span.trace_id, span.span_id) == (parent.trace_id, parent.span_id):
            return not span.is_remote
    manager = sys.modules.get("mlflow.tracing.trace_manager")
    if manager is None:
        return False
    known = manager.InMemoryTraceManager.get_instance()
    return known.get_span_from_id(mlflow_trace_id(parent.trace_id), f"{parent.span_id:016x}") is not None


def current_trace_context() -> TraceContext | None:
    """Return the innermost active MLflow span's context, else OpenTelemetry's current span's, else ``None``.

    By default MLflow keeps its active span in a separate context, which OpenTelemetry's functions do not see. An
    unsampled span is returned with its flags. The span of :data:`model_call` takes precedence.
    """
    active = active_trace_context()
    call = model_call.get()
    return active if call is None else call.trace_context(active)


def as_span(span: Any) -> trace.Span:
    """Return the OpenTelemetry span of an MLflow span; an OpenTelemetry span is returned unchanged.

    Raises:
        ConfigurationError: It is not a span.
    """
    # MLflow has no public API for it.
    inner = getattr(span, "_span", span)
    if not isinstance(inner, trace.Span):
        raise ConfigurationError(f"span must be a span of MLflow or OpenTelemetry, not {type(span).__qualname__}.")
    return inner


def active_trace_context() -> TraceContext | None:
    """Return the same as :func:`current_trace_context`, without :data:`model_call`."""
    context = _mlflow_context()
    if context is not None:
        reference, found = _in_mlflow.last
        # Most requests have the same span as the one before. The rest of read() is inlined, for speed.
        if reference() is not context:
            found = _in_mlflow.read(context)
        if found is not None:
            return found
    return opentelemetry_trace_context()


def opentelemetry_trace_context() -> TraceContext | None:
    """Return the context of OpenTelemetry's current span; ``None`` if there is none."""
    return _in_opentelemetry.read(get_current())


def as_trace_context(context: SpanContext | None) -> TraceContext | None:
    """Return an OpenTelemetry span's context as a :class:`TraceContext`; ``None`` if it is not valid."""
    # MLflow's no-op span has no context.
    if context is None or not context.is_valid:
        return None
    state = context.trace_state
    return TraceContext(context.trace_id, context.span_id, context.trace_flags, state.to_header() if state else "")


class _Reader:
    """Reads the current span from OpenTelemetry contexts, and remembers the last result.

    Attributes:
        last: The last context and its span. A context is immutable, so its identity is enough. The reference is weak
            because a context keeps its span.
    """

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: tuple[Callable[[], Context | None], TraceContext | None] = (lambda: None, None)

    def read(self, context: Context) -> TraceContext | None:
        reference, found = self.last
        if reference() is not context:
            found = as_trace_context(trace.get_current_span(context).get_span_context())
            # Replaced atomically, so there is no lock.
            self.last = weakref.ref(context), found
        return found


_in_mlflow = _Reader()
_in_opentelemetry = _Reader()


def _mlflow_context() -> Context | None:
    """Return MLflow's current context; ``None`` if MLflow is not imported.

    Uses MLflow's internals because its public ``get_current_active_span()`` does not return an unsampled span.
    """
    provider = sys.modules.get("mlflow.tracing.provider")
    if provider is None:
        return None
    try:
        # MLflow's functions first read os.environ to see whether it shares OpenTelemetry's context, which takes longer
        # than everything else here. If it does, this context has no span.
        context = provider.mlflow_runtime_context.get_current()
        if isinstance(context, Context):
            return context
        raise TypeError(f"MLflow's context is a {type(context).__qualname__}")
    except Exception as error:
        _guard.caught(error)
    return None
