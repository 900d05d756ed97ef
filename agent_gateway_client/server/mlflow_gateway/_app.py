"""The application that MLflow's server runs: MLflow's own, wrapped by the companion."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, cast

import mlflow
from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.tracing.constant import SpanAttributeKey
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor

from agent_gateway_client._guard import Guard
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import Gateways
from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.server.asgi import GatewayTracingMiddleware
from agent_gateway_client.server.asgi.exchange import ASGIApp, Scope
from agent_gateway_client.server.authorization import MAY_JOIN_VARIABLE, MayJoin, may_join_from_environment
from agent_gateway_client.server.call import MAX_ATTEMPTS, Attempt, GatewayCall, Operation
from agent_gateway_client.server.export import Exporter, Finish
from agent_gateway_client.server.export.environment import exporter_from_environment
from agent_gateway_client.server.export.mlflow import MlflowDestination
from agent_gateway_client.server.export.mlflow_store import SqlStore, server_store
from agent_gateway_client.server.export.otlp import ENDPOINT_VARIABLES, OtlpDestination
from agent_gateway_client.server.mlflow_gateway._permissions import may_write
from agent_gateway_client.server.mlflow_gateway._spans import attribute, read_spans
from agent_gateway_client.server.observed.pages import token_from_environment
from agent_gateway_client.server.observed.prometheus import make_directory
from agent_gateway_client.server.reading.details import is_success
from agent_gateway_client.server.upstreams import span_id_of_new_attempt

APP_VARIABLE = "AGENT_GATEWAY_MLFLOW_APP"
"""The MLflow app to wrap, like ``basic-auth``; by default MLflow without authentication."""

CALLER_TRACE_ID = "agent_gateway.caller.traceId"
CALLER_SPAN_ID = "agent_gateway.caller.spanId"
"""Metadata of the gateway's own trace that refer to the caller's span."""

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
"""The gateway's routes below its prefix, MLflow's request types, and the operations."""

_WORKSPACE_HEADER = b"x-mlflow-workspace"

_MAX_SPANS = MAX_ATTEMPTS * 4


class _GatewaySpans:
    """The gateway's own spans of one request, in the order of their start."""

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
    """MLflow's ASGI application with mirrors of the calls of its AI Gateway."""

    def __init__(self, app: ASGIApp, exporter: Exporter, may_join: MayJoin | None = None) -> None:
        # The endpoint comes from MLflow's spans or its request state, not from the request's body.
        super().__init__(app, exporter, endpoint=lambda scope: None, strip_trace_context=True, may_join=may_join)
        self._prefix = os.environ.get("_MLFLOW_STATIC_PREFIX", "").rstrip("/") + "/gateway"
        self._observer = _SpanObserver()
        self._observed_provider: object = None

    app_guards_pages = True

    def warm_up(self) -> Iterable[Callable[[], object]]:
        """Return the import of LiteLLM, which would delay a worker's first call."""
        return [partial(import_module, "litellm")] if find_spec("litellm") else []

    def is_call(self, scope: Scope) -> bool:
        """Return whether a request is for one of the gateway's routes."""
        return bool(scope["method"] == "POST" and scope["path"].startswith(self._prefix + "/"))

    def application_scope(self, scope: Scope) -> Scope:
        """Remove the caller's trace context from the request; see the package's docstring."""
        # MLflow sets the chosen endpoint in the request's state, the only source without usage tracking.
        return {**super().application_scope(scope), "state": {**scope.get("state", {})}}

    def is_refused(self, call: GatewayCall, scope: Scope) -> bool:
        """Return whether MLflow rejected the caller: a 401 or 403 before it chose an endpoint, not from a provider.

        MLflow's authentication runs before its routes, so any other status comes from an authenticated request.
        """
        return call.http_status in (401, 403) and not call.attempts and "endpoint_id" not in scope["state"]

    def observe(self, call: GatewayCall, scope: Scope) -> tuple[AbstractContextManager[Any], Finish | None]:
        """Collect the gateway's own spans of this request, and set the caller's ids in its trace."""
        self._attach_observer()
        path = scope["path"][len(self._prefix) :]
        for pattern, request_type, operation in _ROUTES:
            if re.match(pattern, path):
                call.request_type, call.operation = request_type, operation
                break
        observed = _GatewaySpans()
        state = scope["state"]

        header = next((value for name, value in scope["headers"] if name.lower() == _WORKSPACE_HEADER), None)

        def finish(call: GatewayCall) -> None:
            call.workspace = _workspace(scope["path"], header)
            username = state.get("username")
            call.user = username if isinstance(username, str) else None
            read_spans(call, observed.spans)
            if call.linked is None:
                _read_state(call, state)

        return _Observation(call, observed), finish

    def attempt_span_id(self, call: GatewayCall) -> int:
        """Return the id of MLflow's span for the current attempt; on passthrough routes MLflow has none yet."""
        observed = _gateway_spans.get()
        for span in reversed(observed.spans if observed is not None else ()):
            if span.end_time is None and attribute(span, SpanAttributeKey.MODEL_PROVIDER) is not None:
                return span.get_span_context().span_id
        return span_id_of_new_attempt(call)

    def _attach_observer(self) -> None:
        """Add the observer to MLflow's tracer provider, which MLflow replaces when its configuration changes."""
        with _observer_guard:
            provider = mlflow.tracing.get_bridged_tracer_provider()
            if provider is not self._observed_provider and hasattr(provider, "add_span_processor"):
                provider.add_span_processor(self._observer)
                self._observed_provider = provider


_observer_guard = Guard("Could not observe the spans of MLflow's gateway; mirrors have no provider attempts", "mlflow")


class _Observation(AbstractContextManager[None]):
    """The context in which a request is served."""

    def __init__(self, call: GatewayCall, observed: _GatewaySpans) -> None:
        self._observed = observed
        self._caller = mlflow.tracing.context(
            metadata={
                CALLER_TRACE_ID: mlflow_trace_id(call.parent.trace_id),
                CALLER_SPAN_ID: f"{call.parent.span_id:016x}",
            }
        )

    def __enter__(self) -> None:
        self._token = _gateway_spans.set(self._observed)
        self._caller.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._caller.__exit__(*error)
        _gateway_spans.reset(self._token)


def _workspace(path: str, header: bytes | None) -> str | None:
    """Return the workspace in which MLflow serves a request; ``None`` without workspaces.

    The workspace exists: this is called only for requests that MLflow accepted.
    """
    if not MLFLOW_ENABLE_WORKSPACES.get():  # type: ignore[no-untyped-call]
        return None
    from mlflow.server.workspace_helpers import resolve_workspace_for_request_if_enabled

    workspace = resolve_workspace_for_request_if_enabled(path, header.decode("latin-1") if header else None)
    return None if workspace is None else str(workspace.name)


def _read_state(call: GatewayCall, state: Mapping[str, Any]) -> None:
    """Add the facts in MLflow's request state, for an endpoint without usage tracking and so without spans."""
    endpoint_id = state.get("endpoint_id")
    if isinstance(endpoint_id, str):
        with SqlStore(server_store).in_workspace(call.workspace):
            endpoint = server_store().get_gateway_endpoint(endpoint_id=endpoint_id)
        call.endpoint_id, call.endpoint = endpoint_id, endpoint.name
        providers = {mapping.model_definition.provider for mapping in endpoint.model_mappings}
        if is_success(call) and not call.attempts and len(providers) == 1:
            # The other facts of the successful attempt come from the response.
            call.add(Attempt(start_time_ns=call.start_time_ns, end_time_ns=call.end_time_ns))
        for attempt in call.attempts:
            attempt.provider = attempt.provider or (next(iter(providers)) if len(providers) == 1 else None)


def create_app() -> ASGIApp:
    """Return MLflow's application wrapped by the companion, for ``mlflow server --app-name agent-gateway``.

    Raises:
        ConfigurationError: MLflow does not run under uvicorn, or a variable has an invalid value.
    """
    server = os.environ.get("_MLFLOW_SGI_NAME", "uvicorn")
    if server != "uvicorn":
        raise ConfigurationError(
            f"The MLflow AI Gateway runs under uvicorn, not {server}; start mlflow server without --{server}-opts."
        )
    app = _wrapped_app()()
    return MlflowGateway(app, _exporter(), may_join_from_environment())


def _exporter() -> Exporter:
    """Return the exporter, and keep its OTLP settings from MLflow.

    MLflow reads the same variables: it would send its own traces, with prompts and answers, to the endpoint and no
    longer store them. ``MLFLOW_ENABLE_OTLP_EXPORTER=true`` allows that.
    """
    # The store is looked up at the first use: MLflow opens it at the first request.
    exporter = exporter_from_environment(_own_store)
    if isinstance(exporter.destination, OtlpDestination) and "MLFLOW_ENABLE_OTLP_EXPORTER" not in os.environ:
        for variable in ENDPOINT_VARIABLES:
            os.environ.pop(variable, None)
    return exporter


def _own_store() -> MlflowDestination:
    """Return the server's own store as the destination.

    With MLflow's authentication, a mirror is written only to an experiment that its caller may write to, unless the
    operator has set ``AGENT_GATEWAY_MAY_JOIN``.
    """
    wrapped = _mlflow_apps().get(os.environ.get(APP_VARIABLE, ""))
    has_users = wrapped is not None and wrapped.module == "mlflow.server.auth"
    asks_mlflow = has_users and not os.environ.get(MAY_JOIN_VARIABLE)
    return MlflowDestination(SqlStore(server_store), may_write if asks_mlflow else None)


def check_environment() -> None:
    """Raise now the errors that invalid environment variables would cause later."""
    _wrapped_app()
    exporter_from_environment(_own_store)
    may_join_from_environment()
    token_from_environment()
    # Before MLflow is imported, which creates its Prometheus metrics.
    make_directory()
    Gateways.from_environment()


def _wrapped_app() -> Callable[[], ASGIApp]:
    """Return the factory of the MLflow application to wrap."""
    name = os.environ.get(APP_VARIABLE)
    if not name:

        def plain_app() -> ASGIApp:
            from mlflow.server.fastapi_app import app

            return cast(ASGIApp, app)

        return plain_app
    apps = _mlflow_apps()
    if name not in apps:
        raise ConfigurationError(
            f"{APP_VARIABLE} is {name!r}, which is not installed; the installed MLflow apps are: "
            f"{', '.join(sorted(apps))}."
        )
    factory: Callable[[], ASGIApp] = apps[name].load()
    return factory


def _mlflow_apps() -> dict[str, EntryPoint]:
    """Return the installed MLflow apps by name, without ours."""
    return {point.name: point for point in entry_points(group="mlflow.app") if point.name != "agent-gateway"}
