"""The MLflow AI Gateway, as an ``mlflow.app`` plugin: ``mlflow server --app-name agent-gateway``.

Two of MLflow's public extension points are enough. The plugin wraps MLflow's ASGI application, so it sees each request
before MLflow does; and MLflow's tracer provider takes a span processor, which sees the gateway's own spans begin. What
those spans know (endpoint, provider attempts, tokens) is read from them after the call, in the exporter's thread.

MLflow never sees the caller's ``traceparent``: it would add a second, half-working mirror, and send the header on to
the provider through its passthrough and proxy routes.
"""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, cast

import mlflow
from mlflow.tracing.constant import SpanAttributeKey
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor

from agent_gateway_client._install import install_command
from agent_gateway_client._log import logger, version_of, warn_once
from agent_gateway_client.errors import ConfigurationError, MissingDependencyError
from agent_gateway_client.gateways import Gateways

if find_spec("mlflow.server") is None:
    # mlflow-tracing, which an agent has, is a part of MLflow under the same name.
    raise MissingDependencyError(f"MLflow's server is not installed: {install_command('mlflow-gateway')}")

from agent_gateway_client.server._mlflow_spans import attribute, read_spans
from agent_gateway_client.server.asgi import GatewayTracingMiddleware
from agent_gateway_client.server.call import MAX_ATTEMPTS, Attempt, GatewayCall, Operation
from agent_gateway_client.server.destinations import (
    ENDPOINT_VARIABLES,
    MlflowDestination,
    OtlpDestination,
    destination_from_environment,
    experiment_id_from_environment,
)
from agent_gateway_client.server.details import is_success
from agent_gateway_client.server.exchange import ASGIApp, Scope
from agent_gateway_client.server.export import Destination, Exporter, Finish
from agent_gateway_client.server.joining import MayJoin, may_join_from_environment
from agent_gateway_client.server.upstreams import span_id_of_new_attempt

APP_VARIABLE = "AGENT_GATEWAY_MLFLOW_APP"
"""Names the MLflow app to wrap, like ``basic-auth``; unset, MLflow's plain one."""

CALLER_TRACE_ID = "agent_gateway.caller.traceId"
CALLER_SPAN_ID = "agent_gateway.caller.spanId"
"""Metadata of the gateway's own trace that point back at the caller."""

_ROUTES: tuple[tuple[str, str, Operation], ...] = (
    (r"/mlflow/v1/chat/completions$", "unified/chat", "chat"),
    (r"/[^/]+/mlflow/invocations$", "unified/invocations", "other"),
    (r"/openai/v1/chat/completions$", "passthrough/model/openai-chat", "chat"),
    (r"/openai/v1/embeddings$", "passthrough/model/openai-embeddings", "embeddings"),
    (r"/openai/v1/responses", "passthrough/model/openai-responses", "chat"),
    (r"/anthropic/v1/messages$", "passthrough/model/anthropic-messages", "chat"),
    (r"/gemini/v1beta/models/", "passthrough/model/gemini-generateContent", "generate_content"),
    (r"/typesafe/v1/systemone$", "passthrough/model/typesafe-systemone", "other"),
    (r"/proxy/[^/]+/", "proxy/raw", "other"),
)
"""The gateway's routes below its prefix, MLflow's own names for them, and what they do."""

_MAX_SPANS = MAX_ATTEMPTS * 4


class _GatewaySpans:
    """The gateway's own spans of one request, in the order in which they began."""

    __slots__ = ("spans",)

    def __init__(self) -> None:
        self.spans: list[Span] = []


_gateway_spans: ContextVar[_GatewaySpans | None] = ContextVar("agent_gateway_client.gateway_spans", default=None)


class _SpanObserver(SpanProcessor):
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        observed = _gateway_spans.get()
        if observed is not None and len(observed.spans) < _MAX_SPANS:
            observed.spans.append(span)


class MlflowGateway(GatewayTracingMiddleware):
    """MLflow's ASGI application with the calls of its AI Gateway mirrored."""

    def __init__(self, app: ASGIApp, exporter: Exporter, may_join: MayJoin | None = None) -> None:
        # MLflow's spans and its request's state name the endpoint, and the request's body need not.
        super().__init__(app, exporter, endpoint=lambda scope: None, strip_trace_context=True, may_join=may_join)
        self._prefix = os.environ.get("_MLFLOW_STATIC_PREFIX", "").rstrip("/") + "/gateway"
        self._observer = _SpanObserver()
        self._observed_provider: object = None

    def is_call(self, scope: Scope) -> bool:
        """Tell whether a request goes to one of the gateway's routes."""
        return bool(scope["method"] == "POST" and scope["path"].startswith(self._prefix + "/"))

    def application_scope(self, scope: Scope) -> Scope:
        """Take the caller's trace context off the request: see the module's docstring."""
        # MLflow notes in the request's state which endpoint it chose, which is all there is without usage tracking.
        return {**super().application_scope(scope), "state": {**scope.get("state", {})}}

    def is_refused(self, call: GatewayCall, scope: Scope) -> bool:
        """Tell whether MLflow turned the caller away: before it chose an endpoint, and not because a provider did."""
        return super().is_refused(call, scope) and "endpoint_id" not in scope["state"]

    def observe(self, call: GatewayCall, scope: Scope) -> tuple[AbstractContextManager[Any], Finish | None]:
        """Watch the gateway's own spans of this request, and let its trace point back at the caller's."""
        self._keep_observing()
        path = scope["path"][len(self._prefix) :]
        for pattern, request_type, operation in _ROUTES:
            if re.match(pattern, path):
                call.request_type, call.operation = request_type, operation
                break
        observed = _GatewaySpans()
        state = scope["state"]

        def finish(call: GatewayCall) -> None:
            read_spans(call, observed.spans)
            if call.linked is None:
                _read_state(call, state)

        return _Observation(call, observed), finish

    def attempt_span_id(self, call: GatewayCall) -> int:
        """Return the id of MLflow's span for the attempt under way; on its passthrough routes it has none yet."""
        observed = _gateway_spans.get()
        for span in reversed(observed.spans if observed is not None else ()):
            if span.end_time is None and attribute(span, SpanAttributeKey.MODEL_PROVIDER) is not None:
                return span.get_span_context().span_id
        return span_id_of_new_attempt(call)

    def _keep_observing(self) -> None:
        """Put the observer on MLflow's tracer provider, which MLflow replaces whenever its configuration changes."""
        try:
            provider = mlflow.tracing.get_bridged_tracer_provider()
            if provider is not self._observed_provider and hasattr(provider, "add_span_processor"):
                provider.add_span_processor(self._observer)
                self._observed_provider = provider
        except Exception:
            logger.debug("MLflow's tracer provider cannot be observed", exc_info=True)
            warn_once(
                "mlflow_gateway.provider",
                "mlflow %s does not let its spans be observed; mirrors have no provider attempts. "
                "Upgrade agent-gateway-client.",
                version_of("mlflow"),
            )


class _Observation(AbstractContextManager[None]):
    """The context that a request is served in."""

    def __init__(self, call: GatewayCall, observed: _GatewaySpans) -> None:
        self._observed = observed
        self._caller = mlflow.tracing.context(
            metadata={
                CALLER_TRACE_ID: f"tr-{call.parent.trace_id:032x}",
                CALLER_SPAN_ID: f"{call.parent.span_id:016x}",
            }
        )

    def __enter__(self) -> None:
        self._token = _gateway_spans.set(self._observed)
        self._caller.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._caller.__exit__(*error)
        _gateway_spans.reset(self._token)


def _read_state(call: GatewayCall, state: Mapping[str, Any]) -> None:
    """Add what MLflow notes of a request whose endpoint has usage tracking off, and so no spans."""
    endpoint_id = state.get("endpoint_id")
    if isinstance(endpoint_id, str):
        endpoint = _server_store().get_gateway_endpoint(endpoint_id=endpoint_id)
        call.endpoint_id, call.endpoint = endpoint_id, endpoint.name
        providers = {mapping.model_definition.provider for mapping in endpoint.model_mappings}
        if is_success(call) and not call.attempts and len(providers) == 1:
            # The response tells the rest of the attempt that succeeded.
            call.add(Attempt(start_time_ns=call.start_time_ns, end_time_ns=call.end_time_ns))
        for attempt in call.attempts:
            attempt.provider = attempt.provider or (next(iter(providers)) if len(providers) == 1 else None)


def _server_store() -> Any:
    """Return the tracking store of the MLflow server that this runs in."""
    # What MLflow's own OTLP endpoint uses; the public clients would open a second connection pool to the same database.
    from mlflow.server.handlers import _get_tracking_store

    return _get_tracking_store()


def _own_store() -> Destination:
    experiment_id = experiment_id_from_environment()
    # Looked up at the first use: MLflow opens its store when the first request comes.
    return MlflowDestination(
        lambda experiment_id, spans: _server_store().log_spans(experiment_id, spans), experiment_id, _server_store
    )


def create_app() -> ASGIApp:
    """Make MLflow's application with the companion around it; what ``mlflow server --app-name agent-gateway`` runs.

    Raises:
        ConfigurationError: MLflow runs under another server than uvicorn, or a variable has a value that cannot work.
    """
    server = os.environ.get("_MLFLOW_SGI_NAME", "uvicorn")
    if server != "uvicorn":
        raise ConfigurationError(
            f"The MLflow AI Gateway runs under uvicorn, not {server}; start mlflow server without --{server}-opts."
        )
    app = _wrapped_app()()
    return MlflowGateway(app, Exporter(_destination()), may_join_from_environment())


def _destination() -> Destination:
    """Return where mirrors go, and where nothing else does.

    MLflow reads the same variables: it would send its own traces there too, prompts and answers and all, and keep none
    of them. Whoever wants that says so, by ``MLFLOW_ENABLE_OTLP_EXPORTER=true``.
    """
    destination = destination_from_environment(_own_store)
    if isinstance(destination, OtlpDestination) and "MLFLOW_ENABLE_OTLP_EXPORTER" not in os.environ:
        for variable in ENDPOINT_VARIABLES:
            os.environ.pop(variable, None)
    return destination


def _check_environment() -> None:
    _wrapped_app()
    destination_from_environment(_own_store)
    may_join_from_environment()
    Gateways.from_environment()


def _wrapped_app() -> Callable[[], ASGIApp]:
    """Return what makes the MLflow application to wrap."""
    name = os.environ.get(APP_VARIABLE)
    if not name:

        def plain_app() -> ASGIApp:
            from mlflow.server.fastapi_app import app

            return cast(ASGIApp, app)

        return plain_app
    apps = {point.name: point for point in entry_points(group="mlflow.app") if point.name != "agent-gateway"}
    if name not in apps:
        raise ConfigurationError(
            f"{APP_VARIABLE} is {name!r}, and no such MLflow app is installed; there are: {', '.join(sorted(apps))}."
        )
    factory: Callable[[], ASGIApp] = apps[name].load()
    return factory


# MLflow imports this module once before it starts its workers. A value that cannot work ends `mlflow server` here, with
# one error; in the workers, uvicorn would start them again and again.
_check_environment()
