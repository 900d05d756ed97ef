"""Reads a run's span from MLflow's tracer for LangChain, and MLflow's current context.

The only file of this package that uses the internals of that tracer.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from agent_gateway_client._guard import Guard
from agent_gateway_client.active_span import as_trace_context
from agent_gateway_client.w3c import TraceContext

T = TypeVar("T")

_PROVIDER, _TRACER = "mlflow.tracing.provider", "mlflow.langchain.langchain_tracer"

_GUARDS = {
    module: Guard(
        f"Could not read the span of a LangChain run ({module}); its requests carry a less specific parent span",
        "mlflow-tracing",
    )
    for module in (_PROVIDER, _TRACER)
}

guard = _GUARDS[_PROVIDER]
"""For callers that use the result of :func:`mlflow_contexts`."""


def may_have_spans() -> bool:
    """Return whether MLflow may keep spans for LangChain's runs, which requires that its tracer is loaded."""
    return _TRACER in sys.modules


def span_of_run(manager: Any) -> TraceContext | None:
    """Return the span that MLflow's autolog keeps for a run; ``None`` if it keeps none.

    That span is often not the active one: in async code by default, in batches of chains, and for all but the last of
    several prompts.

    Args:
        manager: LangChain's run manager, which has the ``run_id`` and all ``handlers`` of the run.
    """

    def look_up(module: Any) -> TraceContext | None:
        for handler in manager.handlers:
            if isinstance(handler, module.MlflowLangchainTracer) and str(manager.run_id) in handler._run_span_mapping:
                return as_trace_context(handler._get_span_by_run_id(manager.run_id)._span.get_span_context())
        return None

    return _guarded(look_up, _TRACER)


def mlflow_contexts() -> Any:
    """Return the object that holds MLflow's current context with its active span; ``None`` without MLflow.

    It has ``get_current()`` and ``attach(context)``, like OpenTelemetry's ``context`` module.
    """
    # Called once per model call, because MLflow reads os.environ each time.
    return _guarded(_contexts)


def _contexts(provider: Any) -> Any:
    return provider.get_context_api()


def _guarded(use: Callable[[Any], T], module: str = _PROVIDER) -> T | None:
    """Call a function with a module of MLflow; ``None`` if it is not loaded, or its internals have changed."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        with _GUARDS[module]:
            return use(loaded)
    return None
