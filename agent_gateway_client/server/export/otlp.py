"""Any OpenTelemetry collector or back end as a destination, over OTLP/HTTP.

It is configured by OpenTelemetry's variables: ``OTEL_EXPORTER_OTLP_*``, and ``OTEL_SERVICE_NAME`` and
``OTEL_RESOURCE_ATTRIBUTES`` for the resource.
"""

import logging
import os
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from agent_gateway_client._install import install_command
from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.errors import ConfigurationError, MissingDependencyError
from agent_gateway_client.server.export.destination import (
    ANYWHERE,
    Destination,
    ExportError,
    Place,
    Refused,
    Unavailable,
    address_of,
)
from agent_gateway_client.server.mirror import Convention

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's variables for the endpoint; read when the destination is created."""

_DEFAULT_ENDPOINT = "http://localhost:4318"

_FILE_VARIABLES = (
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
)

_UNAVAILABLE = {401, 403, 404, 408, 409, 425, 429, 502, 503, 504}
"""Statuses to retry. 401, 403 and 404 are about the endpoint and the credentials, not about the spans."""


class OtlpDestination(Destination):
    """A collector or back end, which accepts spans of any trace.

    Raises:
        ConfigurationError: A variable has an invalid value.
        MissingDependencyError: OpenTelemetry's exporter is not installed.
    """

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
        self._address = address_of(next(filter(None, map(os.environ.get, ENDPOINT_VARIABLES)), _DEFAULT_ENDPOINT))
        for variable in _FILE_VARIABLES:
            _check_file(variable)
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ModuleNotFoundError:
            raise MissingDependencyError(
                f"AGENT_GATEWAY_EXPORTER=otlp needs OpenTelemetry's exporter: {install_command('server')}"
            ) from None
        self._new_exporter = OTLPSpanExporter
        self._connect()
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_is_not_ours)

    def _connect(self) -> None:
        from requests import Response, Session

        # The exporter itself reports neither the failure nor a partial success.
        self._answer: Any = None

        def note_answer(response: Response, *_: Any, **__: Any) -> None:
            self._answer = response

        class CertificateFirst(Session):
            """A session whose own certificate takes precedence over REQUESTS_CA_BUNDLE, unlike in requests."""

            def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
                own = self.verify if verify is None else verify
                return super().merge_environment_settings(url, proxies, stream, own, cert)

        session = CertificateFirst()
        session.hooks["response"].append(note_answer)
        self._exporter = self._new_exporter(session=session)

    @property
    def description(self) -> str:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return f"OTLP at {self._address}"

    def send(self, spans: Sequence[ReadableSpan], place: Place = ANYWHERE) -> int:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        self._answer = None
        token = _sending.set(True)
        try:
            result = self._exporter.export(spans)
        finally:
            _sending.reset(token)
        answer = self._answer
        if result is SpanExportResult.SUCCESS:
            return 0 if answer is None else _rejected_spans(answer)
        if answer is None:
            raise Unavailable("the OTLP endpoint did not answer")
        status = answer.status_code
        if status in _UNAVAILABLE:
            after = answer.headers.get("Retry-After", "")
            raise Unavailable(f"HTTP {status}", retry_after=float(after) if after.isdecimal() else None)
        if 400 <= status < 500:
            raise Refused(f"the OTLP endpoint answered {status}")
        # The endpoint fails, perhaps only for these spans.
        raise ExportError(f"HTTP {status}")

    def after_fork(self) -> None:
        """Open new connections: two processes must not share one."""
        self._connect()


def _rejected_spans(answer: Any) -> int:
    """Return the number of rejected spans of an accepted request (OTLP, partial success), and warn once."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        rejected = int(ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans)
    except DecodeError:
        # Some endpoints answer in JSON, or with an empty body.
        return 0
    if rejected:
        logger.debug("The OTLP endpoint rejected %d spans of a request that it accepted", rejected)
        warn_once(
            "otlp.partial_success",
            "The OTLP endpoint accepted a request and rejected %d of its spans; check its log. Logged once.",
            rejected,
        )
    return max(0, rejected)


def _check_endpoint(variable: str) -> None:
    endpoint = os.environ.get(variable, "")
    parts = urlsplit(endpoint)
    if endpoint and not (parts.scheme in ("http", "https") and parts.hostname):
        raise ConfigurationError(f"{variable} is {endpoint!r}; give a URL like http://localhost:4318.")


def _check_file(variable: str) -> None:
    path = os.environ.get(variable, "")
    if path and not Path(path).is_file():
        raise ConfigurationError(f"{variable} is {path!r}, which does not exist; give the path of a PEM file.")


_sending: ContextVar[bool] = ContextVar("agent_gateway_client.sending", default=False)


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Suppress OpenTelemetry's log line for each of our failed requests; we log a summary."""
    return not _sending.get()
