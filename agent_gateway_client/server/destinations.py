"""The places that spans can be sent to: MLflow (its own store in process, or a server), or any OTLP back end."""

import logging
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from agent_gateway_client._install import install_command
from agent_gateway_client._log import version_of, warn_once
from agent_gateway_client.errors import ConfigurationError, MissingDependencyError
from agent_gateway_client.server.export import Destination, Rejected
from agent_gateway_client.server.mirror import Convention
from agent_gateway_client.server.totals import complete_totals

EXPORTER_VARIABLE = "AGENT_GATEWAY_EXPORTER"
EXPERIMENT_VARIABLE = "AGENT_GATEWAY_EXPERIMENT_ID"

_WORTH_ANOTHER_TRY = {401, 403, 404, 408, 409, 425, 429}
"""Client errors that an operator or time can mend; any other 4xx is about the spans themselves."""

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables that say where spans go; they are read when the destination is made."""

LogSpans = Callable[[str, list[Any]], object]
"""MLflow's ``log_spans(experiment_id, spans)``, of a store or of a tracing client."""


class MlflowDestination:
    """MLflow, through whatever can log spans: a tracking store, or ``TracingClient`` for a server.

    A trace that MLflow does not know yet is begun in the given experiment, and moves to the caller's own experiment
    when the caller's trace arrives.
    """

    convention = Convention.MLFLOW

    def __init__(self, log_spans: LogSpans, experiment_id: str, store: Callable[[], Any] | None = None) -> None:
        """Make a destination.

        Args:
            log_spans: What stores the spans.
            experiment_id: Where a trace is begun that MLflow does not know yet.
            store: Returns the tracking store in which the totals of a trace are completed; without, they are not.
        """
        self._log_spans = log_spans
        self._experiment_id = experiment_id
        self._store = store

    def send(self, spans: Sequence[ReadableSpan]) -> None:
        """See :class:`~agent_gateway_client.server.export.Destination`."""
        from mlflow.entities import Span
        from mlflow.exceptions import MlflowException

        try:
            self._log_spans(self._experiment_id, [Span(span) for span in spans])
        except NotImplementedError:
            raise Rejected("this MLflow store keeps no spans; MLflow needs a database as its backend store") from None
        except MlflowException as error:
            status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
            if _is_final(status):
                raise Rejected(f"MLflow answered {error.error_code}") from error
            raise
        except ConnectionError as error:
            if _is_final(getattr(error, "status", None)):
                raise Rejected(str(error)) from error
            raise
        if self._store is not None:
            complete_totals(self._store(), (f"tr-{span.context.trace_id:032x}" for span in spans))


class OtlpDestination:
    """An OpenTelemetry collector or back end; the standard ``OTEL_EXPORTER_OTLP_*`` variables say where and how."""

    convention = Convention.OTEL

    def __init__(self) -> None:
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        if protocol not in (None, "", "http/protobuf"):
            raise ConfigurationError(
                f"The OTLP protocol {protocol!r} is not supported; set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and "
                "point OTEL_EXPORTER_OTLP_ENDPOINT at the collector's HTTP port (4318 by default)."
            )
        for variable in ENDPOINT_VARIABLES:
            _check_endpoint(variable)
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ModuleNotFoundError:
            raise MissingDependencyError(
                f"{EXPORTER_VARIABLE}=otlp needs OpenTelemetry's exporter: {install_command('server')}"
            ) from None
        self._new_exporter = OTLPSpanExporter
        self._connect()
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_is_not_ours)

    def _connect(self) -> None:
        from requests import Response, Session

        # The exporter itself does not tell why it failed.
        self._status: int | None = None

        def note_status(response: Response, *_: Any, **__: Any) -> None:
            self._status = response.status_code

        class CertificateFirst(Session):
            """A session whose own certificate goes before REQUESTS_CA_BUNDLE, unlike those of requests."""

            def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
                own = self.verify if verify is None else verify
                return super().merge_environment_settings(url, proxies, stream, own, cert)

        session = CertificateFirst()
        session.hooks["response"].append(note_status)
        self._exporter = self._new_exporter(session=session)
        self._process = os.getpid()

    def send(self, spans: Sequence[ReadableSpan]) -> None:
        """See :class:`~agent_gateway_client.server.export.Destination`."""
        if self._process != os.getpid():
            # After a fork, two processes must not write to one connection.
            self._connect()
        self._status = None
        token = _sending.set(True)
        try:
            result = self._exporter.export(spans)
        finally:
            _sending.reset(token)
        if result is SpanExportResult.SUCCESS:
            return
        if _is_final(self._status):
            raise Rejected(f"the OTLP endpoint answered {self._status}")
        raise ConnectionError("the OTLP endpoint did not take the spans")


def _check_endpoint(variable: str) -> None:
    endpoint = os.environ.get(variable, "")
    parts = urlsplit(endpoint)
    if endpoint and not (parts.scheme in ("http", "https") and parts.hostname):
        raise ConfigurationError(f"{variable} is {endpoint!r}; give a URL like http://localhost:4318.")


_sending: ContextVar[bool] = ContextVar("agent_gateway_client.sending", default=False)


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Keep OpenTelemetry from logging each try of ours: many, while an endpoint is away. We log a summary."""
    return not _sending.get()


def _is_final(status: int | None) -> bool:
    """Tell whether an HTTP status says that the same spans will never be taken."""
    return status is not None and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY


def experiment_id_from_environment() -> str:
    """Return the experiment in which MLflow keeps mirrors until the caller's trace arrives (``0`` by default).

    Raises:
        ConfigurationError: ``AGENT_GATEWAY_EXPERIMENT_ID`` is no number.
    """
    experiment_id = os.environ.get(EXPERIMENT_VARIABLE) or "0"
    if not experiment_id.isdecimal():
        raise ConfigurationError(f"{EXPERIMENT_VARIABLE} is {experiment_id!r}; give the id of an experiment, a number.")
    return experiment_id


def mlflow_tracking_server() -> Destination:
    """Return the MLflow tracking server or store that ``MLFLOW_TRACKING_URI`` names.

    Raises:
        ConfigurationError: MLflow knows no such kind of store, or cannot open it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracing.client import TracingClient

    try:
        client = TracingClient()
    except MlflowException as error:
        raise ConfigurationError(
            f"MLFLOW_TRACKING_URI is {os.environ.get('MLFLOW_TRACKING_URI')!r}, which MLflow cannot use "
            f"({type(error).__name__}); give the tracking server's URL, like http://localhost:5000."
        ) from error
    log_spans = _quick_log_spans(client.store) or client.log_spans
    return MlflowDestination(log_spans, experiment_id_from_environment(), lambda: client.store)


def _quick_log_spans(store: Any) -> LogSpans | None:
    try:
        from agent_gateway_client.server._mlflow_server import log_spans_function

        return log_spans_function(store)
    except (ImportError, AttributeError):
        warn_once(
            "destinations.mlflow",
            "mlflow %s sends requests in a way that this version of agent-gateway-client does not know; mirrors may be "
            "lost when the tracking server is away for long. Upgrade agent-gateway-client.",
            version_of("mlflow-tracing"),
        )
        return None


def destination_from_environment(mlflow: Callable[[], Destination] = mlflow_tracking_server) -> Destination:
    """Return the destination that ``AGENT_GATEWAY_EXPORTER`` names: ``mlflow`` (the default) or ``otlp``.

    Args:
        mlflow: Makes the destination for ``mlflow``.

    Raises:
        ConfigurationError: The variable has another value, or one that belongs to it is wrong.
    """
    makers: dict[str, Callable[[], Destination]] = {"mlflow": mlflow, "otlp": OtlpDestination}
    name = os.environ.get(EXPORTER_VARIABLE) or "mlflow"
    if name not in makers:
        raise ConfigurationError(f"{EXPORTER_VARIABLE} is {name!r}; the exporters are: {', '.join(makers)}.")
    return makers[name]()
