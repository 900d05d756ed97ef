"""destinations.py: an OTLP endpoint as the place that spans are sent to."""

import gzip
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from server_support import DEADLINE_S, SPAN_ID, TRACE_ID, full_call

from agent_gateway_client.propagation import TraceContext
from agent_gateway_client.server.destinations import OtlpDestination, destination_from_environment
from agent_gateway_client.server.export import Exporter, Rejected
from agent_gateway_client.server.mirror import mirror


class Receiver:
    """An OTLP/HTTP endpoint that keeps what it takes."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], ExportTraceServiceRequest]] = []
        self.statuses: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                if status == 200:
                    request = ExportTraceServiceRequest.FromString(body)
                    receiver.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, request))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for _, _, request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    receiver = Receiver()
    monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    yield receiver
    receiver.stop()


def value_of(value: AnyValue) -> Any:
    """Return what an OTLP value holds."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, str(kind))


def dict_of(attributes: Any) -> dict[str, Any]:
    """Return OTLP attributes as a dictionary; none of them twice."""
    pairs: list[KeyValue] = list(attributes)
    assert len({pair.key for pair in pairs}) == len(pairs)
    return {pair.key: value_of(pair.value) for pair in pairs}


def test_spans_arrive(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    """An OTLP endpoint gets the whole mirror: ids, times, kinds, statuses, link and attributes, and our headers."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-mlflow-experiment-id=7")
    exporter = Exporter(destination_from_environment())
    exporter.submit(full_call(parent=TraceContext(TRACE_ID, SPAN_ID, 3, "a=1")))
    assert exporter.flush(DEADLINE_S)

    ((path, headers, request),) = receiver.requests
    assert path == "/v1/traces"
    assert headers["x-mlflow-experiment-id"] == "7"
    assert [dict_of(spans.resource.attributes) for spans in request.resource_spans] == [
        {"service.name": "agent-gateway"}
    ]
    gateway, failed, answered = receiver.spans
    assert {span.trace_id.hex() for span in receiver.spans} == {f"{TRACE_ID:032x}"}
    assert gateway.parent_span_id.hex() == f"{SPAN_ID:016x}"
    assert failed.parent_span_id == answered.parent_span_id == gateway.span_id
    assert {span.trace_state for span in receiver.spans} == {"a=1"}
    assert [span.name for span in receiver.spans] == [
        "gateway/chat",
        "provider/openai/gpt-4o",
        "provider/anthropic/claude-3-5-haiku",
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
    assert facts["gen_ai.response.finish_reasons"] == ["stop"]


def test_spans_can_be_compressed(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    """The standard OTEL_EXPORTER_OTLP_* variables apply, compression among them."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    destination = OtlpDestination()
    destination.send(mirror(full_call(), destination.convention))
    ((_, headers, _),) = receiver.requests
    assert headers["content-encoding"] == "gzip"
    assert len(receiver.spans) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 408, 500])
def test_an_endpoint_that_cannot_take_them_is_tried_again(
    receiver: Receiver, status: int, monkeypatch: pytest.MonkeyPatch
):
    """Spans wait for an endpoint that is in trouble or not yet set up right, and arrive once."""
    receiver.statuses = [status]
    exporter = Exporter(destination_from_environment())
    exporter.submit(full_call())
    assert exporter.flush(DEADLINE_S)
    assert len(receiver.spans) == 3
    assert exporter.dropped == 0


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_endpoint_refuses_is_rejected(receiver: Receiver, status: int):
    """A request that the endpoint calls wrong must not be sent for ever, nor hold up those behind it."""
    receiver.statuses = [status]
    destination = OtlpDestination()
    with pytest.raises(Rejected):
        destination.send(mirror(full_call(), destination.convention))


def test_an_endpoint_that_is_away_is_no_flood_of_logs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A try that fails is an exception for the exporter, which logs once a minute; nothing else logs it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    destination = OtlpDestination()
    with caplog.at_level(logging.WARNING), pytest.raises(ConnectionError):
        destination.send(mirror(full_call(), destination.convention))
    assert caplog.messages == []
