"""An OTLP endpoint as the destination."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from agent_gateway_client._version import __version__
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.server.export import Exporter, Refused, Unavailable
from agent_gateway_client.server.export.environment import exporter_from_environment
from agent_gateway_client.server.export.otlp import OtlpDestination
from agent_gateway_client.server.mirror import _resource, mirror
from agent_gateway_client.w3c import TraceContext
from tests.support.otlp_receiver import Receiver, make_certificate
from tests.support.server import DEADLINE_S, SPAN_ID, TRACE_ID, full_call


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as receiver:
        monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", "otlp")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


def value_of(value: AnyValue) -> Any:
    """Return the value of an OTLP value message."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, str(kind))


def dict_of(attributes: Any) -> dict[str, Any]:
    """Return OTLP attributes as a dictionary; keys are unique."""
    pairs: list[KeyValue] = list(attributes)
    assert len({pair.key for pair in pairs}) == len(pairs)
    return {pair.key: value_of(pair.value) for pair in pairs}


def test_spans_arrive(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    """An OTLP endpoint gets the whole mirror: ids, times, kinds, statuses, link and attributes, and our headers."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-mlflow-experiment-id=7")
    exporter = exporter_from_environment()
    exporter.submit(full_call(parent=TraceContext(TRACE_ID, SPAN_ID, 3, "a=1")))
    assert exporter.flush(DEADLINE_S)

    (request,) = receiver.requests
    assert request.path == "/v1/traces"
    assert request.headers["x-mlflow-experiment-id"] == "7"
    (resource_spans,) = ExportTraceServiceRequest.FromString(request.body).resource_spans
    assert dict_of(resource_spans.resource.attributes) == {"service.name": "agent-gateway"}
    gateway, failed, answered = receiver.spans
    assert {span.trace_id.hex() for span in receiver.spans} == {f"{TRACE_ID:032x}"}
    assert gateway.parent_span_id.hex() == f"{SPAN_ID:016x}"
    assert failed.parent_span_id == answered.parent_span_id == gateway.span_id
    assert {span.trace_state for span in receiver.spans} == {""}, "it is the caller's own text"
    assert [span.name for span in receiver.spans] == [
        "gateway/chat",
        "chat gpt-4o",
        "chat claude-3-5-haiku",
    ]
    assert [(span.start_time_unix_nano, span.end_time_unix_nano) for span in receiver.spans] == [
        (1_000, 9_000),
        (2_000, 3_000),
        (4_000, 8_000),
    ]
    assert [span.kind for span in receiver.spans] == [
        Span.SPAN_KIND_SERVER,
        Span.SPAN_KIND_CLIENT,
        Span.SPAN_KIND_CLIENT,
    ]
    assert [span.status.code for span in receiver.spans] == [
        Status.STATUS_CODE_ERROR,
        Status.STATUS_CODE_ERROR,
        Status.STATUS_CODE_OK,
    ]
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in gateway.links] == [(f"{0xB:032x}", f"{0xC:016x}")]
    assert dict_of(gateway.attributes)["server.port"] == 5000
    assert dict_of(failed.attributes)["error.type"] == "503"
    facts = dict_of(answered.attributes)
    assert (facts["gen_ai.usage.input_tokens"], facts["gen_ai.usage.output_tokens"]) == (10, 5)
    assert facts["gen_ai.response.finish_reasons"] == ["length"]


def test_spans_can_be_compressed(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    """The standard OTEL_EXPORTER_OTLP_* variables apply, compression among them."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    destination = OtlpDestination()
    destination.send(mirror(full_call(), destination.convention))
    (request,) = receiver.requests
    assert request.headers["content-encoding"] == "gzip"
    assert len(receiver.spans) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 408, 500])
def test_an_endpoint_that_cannot_take_them_is_tried_again(
    receiver: Receiver, status: int, monkeypatch: pytest.MonkeyPatch
):
    """Spans wait for an endpoint that is failing or misconfigured, and arrive once."""
    receiver.troubles = [status]
    exporter = exporter_from_environment()
    exporter.submit(full_call())
    assert exporter.flush(DEADLINE_S)
    assert len(receiver.spans) == 3
    assert exporter.dropped == 0


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_endpoint_refuses_is_rejected(receiver: Receiver, status: int):
    """A request that the endpoint rejects is neither sent for ever nor blocks those behind it."""
    receiver.troubles = [status]
    destination = OtlpDestination()
    with pytest.raises(Refused):
        destination.send(mirror(full_call(), destination.convention))


def test_an_endpoint_that_is_away_is_no_flood_of_logs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A failed try raises an exception for the exporter, which logs once a minute; nothing else logs it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    destination = OtlpDestination()
    with caplog.at_level(logging.WARNING), pytest.raises(Unavailable):
        destination.send(mirror(full_call(), destination.convention))
    assert caplog.messages == []


def test_an_endpoint_for_traces_alone(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    """The variables for traces take precedence over those for all signals, and their endpoint is used unchanged."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{receiver.url}/otlp/here")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20all")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=Bearer%20traces")
    destination = OtlpDestination()
    destination.send(mirror(full_call(), destination.convention))
    (request,) = receiver.requests
    assert request.path == "/otlp/here"
    assert request.headers["authorization"] == "Bearer traces"


def test_an_endpoint_that_does_not_answer_is_given_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    """OTEL_EXPORTER_OTLP_TIMEOUT ends a try, and the next one may succeed."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    destination = OtlpDestination()
    receiver.troubles = ["silence"] * 9
    with pytest.raises(Unavailable):
        destination.send(mirror(full_call(), destination.convention))
    receiver.troubles.clear()
    destination.send(mirror(full_call(), destination.convention))
    assert len(receiver.spans) == 3


def test_an_endpoint_with_a_certificate_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An https endpoint is trusted only with the certificate in OTEL_EXPORTER_OTLP_CERTIFICATE.

    A bundle of other certificates for all programs of the machine does not change that.
    """
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    certificate = make_certificate(tmp_path)
    with Receiver(certificate) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
        destination = OtlpDestination()
        with pytest.raises(Unavailable):
            destination.send(mirror(full_call(), destination.convention))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificate))
        destination = OtlpDestination()
        destination.send(mirror(full_call(), destination.convention))
    assert receiver.url.startswith("https://")
    assert len(receiver.spans) == 3


def test_the_resource_is_what_the_environment_says(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES apply, and the scope is this package's."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our gateway")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    _resource.cache_clear()
    destination = OtlpDestination()
    destination.send(mirror(full_call(), destination.convention))
    _resource.cache_clear()
    (resource_spans,) = ExportTraceServiceRequest.FromString(receiver.requests[0].body).resource_spans
    attributes = dict_of(resource_spans.resource.attributes)
    assert (attributes["service.name"], attributes["deployment.environment"]) == ("our gateway", "test")
    (scope_spans,) = resource_spans.scope_spans
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("agent-gateway-client", __version__)


@pytest.mark.parametrize("status", [401, 403, 404, 429])
def test_an_answer_is_named_as_such(receiver: Receiver, status: int):
    """The log and the doctor show the collector's answer, not a ConnectionError."""
    receiver.troubles = [status] * 9
    destination = OtlpDestination()
    with pytest.raises(Unavailable, match=f"HTTP {status}"):
        destination.send(mirror(full_call(), destination.convention))


def test_spans_that_are_rejected_of_a_request_that_is_taken(receiver: Receiver, logged: pytest.LogCaptureFixture):
    """One warning reports OTLP's partial success."""
    receiver.answer = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=2, error_message="canary")
    ).SerializeToString()
    destination = OtlpDestination()
    for _ in range(2):
        assert destination.send(mirror(full_call(), destination.convention)) == 2
    (message,) = logged.messages
    assert "rejected 2 of its spans" in message
    assert "canary" not in logged.text


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY"])
def test_a_file_that_does_not_exist_is_an_error_at_the_start(variable: str, monkeypatch: pytest.MonkeyPatch):
    """A misspelled certificate path raises an error when the gateway starts."""
    monkeypatch.setenv(variable, "/no/such/file.pem")
    with pytest.raises(ConfigurationError, match=f"{variable} is '/no/such/file.pem'"):
        OtlpDestination()


@pytest.mark.parametrize(("rejected", "sent"), [(1, 1), (3, 0)])
def test_rejected_spans_are_counted(receiver: Receiver, rejected: int, sent: int):
    """OTLP does not say which spans: a call is dropped only if all spans of the request were rejected."""
    receiver.answer = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=rejected)
    ).SerializeToString()
    exporter = Exporter(OtlpDestination())
    exporter.submit(full_call())
    assert exporter.flush()
    exporter.shutdown()
    counts = exporter.counts()
    assert (counts.rejected_spans, counts.sent, sum(counts.dropped.values())) == (rejected, sent, 1 - sent)
    assert len(receiver.requests) == 1
    assert exporter.problem == f"the endpoint rejected {rejected} spans of a request that it accepted"


def test_the_destination_is_named_without_credentials(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:c4n4ry@collector:4318/c4n4ry?key=c4n4ry")
    assert OtlpDestination().description == "OTLP at https://collector:4318"
