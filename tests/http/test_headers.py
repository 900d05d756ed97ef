"""trace_headers(): the headers for a client that the package does not know."""

import queue
import runpy
import threading
from pathlib import Path

import mlflow
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan

from agent_gateway_client import trace_headers
from agent_gateway_client.errors import ConfigurationError
from tests.support.client import (
    GATEWAY,
    OTHER,
    BrokenSpan,
    MemoryExporter,
    each_stack,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
    otel_span,
    remote_span,
    warnings_in,
)

A = f"{GATEWAY}/a"


def test_trace_headers_are_for_gateways_only(monkeypatch: pytest.MonkeyPatch):
    """It returns the headers for a request to this URL: none for another host or without a span."""
    assert trace_headers(A, [GATEWAY]) == {}
    with mlflow.start_span("agent") as span:
        expected = {"traceparent": named_by(span)}
        assert trace_headers(A, [GATEWAY]) == expected
        assert trace_headers("ws://gw.test:5000/gateway/realtime", [GATEWAY]) == expected
        assert [trace_headers(url, [GATEWAY]) for url in (OTHER, "", None, 5, "http://[")] == [{}] * 5
        assert trace_headers(A) == {}
        monkeypatch.setenv("AGENT_GATEWAY_URLS", GATEWAY)
        assert trace_headers(A) == expected
        assert trace_headers(A, [OTHER]) == {}
    with remote_span() as value:
        assert trace_headers(A) == {"traceparent": value, "tracestate": "vendor=1"}
    with otel_span() as otel:
        assert trace_headers(A) == {"traceparent": named_by_otel(otel)}


@each_stack
def test_trace_headers_take_the_clients_own_url_objects(stack):
    """The HTTP client's URL objects are accepted like text."""
    with mlflow.start_span("agent") as span:
        assert trace_headers(stack.URL(A), [GATEWAY]) == {"traceparent": named_by(span)}


def test_trace_headers_with_a_bad_environment(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """With an invalid AGENT_GATEWAY_URLS there is no header and one warning; an invalid argument raises an error."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", "localhost:5000")
    with mlflow.start_span("agent"):
        assert [trace_headers(A) for _ in range(3)] == [{}] * 3
        with pytest.raises(ConfigurationError, match="no scheme"):
            trace_headers(A, ["localhost:5000"])
    (warning,) = warnings_in(caplog)
    assert "AGENT_GATEWAY_URLS" in warning


def test_trace_headers_without_a_span_that_mlflow_could_not_make(monkeypatch: pytest.MonkeyPatch):
    """MLflow's no-op span, which it returns if it could not create one, gives no headers and no error."""
    no_context = trace.set_span_in_context(NonRecordingSpan(None))
    monkeypatch.setattr("mlflow.tracing.provider.mlflow_runtime_context.get_current", lambda: no_context)
    assert trace_headers(A, [GATEWAY]) == {}


@pytest.mark.usefixtures("guards_hold")
def test_trace_headers_never_fail_a_call():
    """If something fails inside there are no headers, and nothing is raised into the user's call."""
    with trace.use_span(BrokenSpan()):
        assert trace_headers(A, [GATEWAY]) == {}


# OpenAI's SDK supports websockets before 16, and uses a way that 17 deprecates.
@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")
def test_the_example_of_a_realtime_session(monkeypatch: pytest.MonkeyPatch):
    """OpenAI's websocket starts with a request that has the agent's span, as in integrations/other-clients."""
    pytest.importorskip("websockets", reason="websockets is not in this environment's constraints file")
    from websockets.sync.server import Request, ServerConnection, serve

    received: queue.Queue[tuple[Request | None, str | bytes]] = queue.Queue()

    def session(connection: ServerConnection) -> None:
        received.put((connection.request, connection.recv()))

    with serve(session, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("GATEWAY_URL", f"http://127.0.0.1:{server.socket.getsockname()[1]}/gateway")
        ran = runpy.run_path(str(Path(__file__).parents[2] / "integrations" / "other-clients" / "realtime.py"))
        opened, said = received.get(timeout=60)
        server.shutdown()
        thread.join()
    (span,) = MemoryExporter.spans.get_finished_spans()
    assert opened is not None
    assert ran["headers"] == {"traceparent": opened.headers["traceparent"]}
    assert f"{span.context.trace_id:032x}-{span.context.span_id:016x}" in opened.headers["traceparent"]
    assert opened.path == "/gateway/openai/v1/realtime?model=realtime"
    assert "session.update" in str(said)
