"""Real emitters of this project's side: the companion's OTLP exporter, and MLflow's OTLP export."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from agent_gateway_client.relay import Limits, Relay
from agent_gateway_client.relay.serve import listen, url_of
from tests.support.otlp_spans import CALLER, TRACE, Sink

DEADLINE_S = 90.0
CANARY = "c4n4ry7f3a"

COMPANION = """
from agent_gateway_client.server import gateway_call
from agent_gateway_client.server.call import TokenUsage
from agent_gateway_client.server.shared import shared_exporter

with gateway_call({"traceparent": TRACEPARENT}, endpoint="chat") as call:
    with call.attempt("openai", "gpt-4o") as failed:
        failed.end("503")
    with call.attempt("openai", "gpt-4o-mini") as attempt:
        attempt.usage = TokenUsage(10, 5)
print(f"{call.span_id:x} {failed.span_id:x} {attempt.span_id:x}")
assert shared_exporter().flush(30)
"""

MLFLOW = """
import mlflow
from mlflow.tracing import set_tracing_context_from_http_request_headers

with set_tracing_context_from_http_request_headers({"traceparent": TRACEPARENT}):
    with mlflow.start_span("serve"):
        with mlflow.start_span("ask", span_type="CHAT_MODEL") as span:
            span.set_inputs({"messages": [CANARY]})
            span.set_outputs(CANARY)
            span.set_attribute("mlflow.llm.model", "gpt-4o-mini")
            span.set_attribute("mlflow.llm.provider", "openai")
            span.set_attribute(
                "mlflow.chat.tokenUsage", {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
            )
"""


@contextmanager
def served() -> Iterator[tuple[str, Sink]]:
    """Serve a relay on loopback; yields the URL for traces, and the receiver of the calls."""
    sink = Sink()
    relay = Relay(sink, limits=Limits(settle_seconds=0.2, wait_seconds=2))
    server = uvicorn.Server(uvicorn.Config(relay, log_level="error"))
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url_of(listening), sink
        finally:
            server.should_exit = True
            thread.join()


def run(code: str, directory: Path, **environment: str) -> str:
    """Run a program that sends spans; return its output."""
    head = f"TRACEPARENT = '00-{TRACE:032x}-{CALLER:016x}-01'\nCANARY = {CANARY!r}\n"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        env={**inherited, "MLFLOW_DISABLE_TELEMETRY": "true", **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_call(sink: Sink) -> None:
    """Wait until a call is submitted."""
    deadline = time.monotonic() + DEADLINE_S
    while not sink.calls and time.monotonic() < deadline:
        time.sleep(0.05)


def test_the_companion_over_otlp(tmp_path: Path):
    """The mirrors keep their ids, so that arriving by a second way does not double them."""
    with served() as (url, sink):
        printed = run(
            COMPANION,
            tmp_path,
            AGENT_GATEWAY_EXPORTER="otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT=url.removesuffix("/v1/traces"),
        )
        wait_for_call(sink)
    (call,) = sink.calls
    ids = [call.span_id, *(attempt.span_id for attempt in call.attempts)]
    assert [f"{one:x}" for one in ids] == printed.split()
    assert (call.parent.trace_id, call.parent.span_id, call.endpoint) == (TRACE, CALLER, "chat")
    assert [(one.provider, one.model, one.error_type) for one in call.attempts] == [
        ("openai", "gpt-4o", "503"),
        ("openai", "gpt-4o-mini", None),
    ]
    assert call.attempts[1].usage is not None
    assert call.attempts[1].usage.input_tokens == 10


@pytest.mark.parametrize("semconv", ["false", "true"])
def test_mlflows_own_export(semconv: str, tmp_path: Path):
    """A gateway that is traced with MLflow and exports over OTLP, with MLflow's names and with OpenTelemetry's."""
    with served() as (url, sink):
        environment = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "MLFLOW_ENABLE_OTEL_GENAI_SEMCONV": semconv,
        }
        run(MLFLOW, tmp_path, **environment)
        wait_for_call(sink)
    (call,) = sink.calls
    assert (call.parent.trace_id, call.parent.span_id) == (TRACE, CALLER)
    (attempt,) = call.attempts
    assert (attempt.provider, attempt.model) == ("openai", "gpt-4o-mini")
    assert attempt.usage is not None
    assert (attempt.usage.input_tokens, attempt.usage.output_tokens) == (10, 5)
    assert CANARY not in repr(call)
