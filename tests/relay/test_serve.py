"""The relay as a program: which configurations it refuses, and that a real exporter can send to it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from agent_gateway_client.cli.relay import relay
from agent_gateway_client.errors import ConfigurationError, StartError
from agent_gateway_client.relay.serve import check_address, is_loopback, listen, token_from_environment

TOKEN = "a-token-of-more-than-sixteen"
DEADLINE_S = 60.0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_token(host: str):
    """Only this machine can reach them."""
    assert is_loopback(host)
    check_address(host, 4318, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "127.0.0.1.example.org"])
def test_other_addresses_need_a_token(host: str):
    """The message names the variable and what gateways must send."""
    with pytest.raises(ConfigurationError, match=r"AGENT_GATEWAY_RELAY_TOKEN.*OTEL_EXPORTER_OTLP_HEADERS"):
        check_address(host, 4318, None)
    check_address(host, 4318, TOKEN)


@pytest.mark.parametrize("token", ["short", "with a space in the middle", "ä" * 20, "line\nbreak-and-more-text"])
def test_a_bad_token(token: str, monkeypatch: pytest.MonkeyPatch):
    """A token that is easy to guess or cannot be sent is refused at start."""
    monkeypatch.setenv("AGENT_GATEWAY_RELAY_TOKEN", token)
    with pytest.raises(ConfigurationError, match="at least 16"):
        token_from_environment()


def test_no_token(monkeypatch: pytest.MonkeyPatch):
    """Unset and empty mean the same."""
    monkeypatch.setenv("AGENT_GATEWAY_RELAY_TOKEN", "")
    assert token_from_environment() is None


@pytest.mark.parametrize("endpoint", [None, "http://localhost:4318", "http://127.0.0.1:4318/v1/traces"])
def test_a_relay_that_would_send_to_itself(endpoint: str | None, monkeypatch: pytest.MonkeyPatch):
    """OTLP's standard port is the relay's own, so without an endpoint the relay would receive its mirrors."""
    monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", "otlp")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    if endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    with pytest.raises(ConfigurationError, match="to itself"):
        check_address("127.0.0.1", 4318, None)
    check_address("127.0.0.1", 4319, None)


def test_a_port_that_is_taken():
    """The error is a sentence, not a traceback."""
    with listen("127.0.0.1", 0) as taken, pytest.raises(StartError, match="--port"):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "MLFLOW_TRACKING_URI"),
        (["--port", "70000"], "--port"),
        (["--settle", "0"], "--settle"),
        (["--max-spans", "1"], "--max-spans"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch):
    """The message names each one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = CliRunner().invoke(relay, arguments)
    assert result.exit_code == 2
    assert said in result.output


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """``agent-gateway relay`` whose mirrors go to an endpoint where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        nowhere = free.getsockname()[1]
    environment = {
        **os.environ,
        "AGENT_GATEWAY_RELAY_TOKEN": TOKEN,
        "AGENT_GATEWAY_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{nowhere}",
        "PYTHONUNBUFFERED": "1",
    }
    code = "from agent_gateway_client.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "relay", "--port", "0"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process, line.partition("Send traces to ")[2].partition(";")[0]
        process.kill()


def test_a_real_exporter(running: tuple["subprocess.Popen[str]", str]):
    """OpenTelemetry's exporter can send to it, with the token in the standard variable. SIGTERM ends it."""
    process, url = running
    health = url.replace("/v1/traces", "/health")
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            assert httpx.get(health, trust_env=False).json()["status"] == "ok"
            break
        except httpx.TransportError:
            time.sleep(0.1)
    provider = TracerProvider()
    exporter = OTLPSpanExporter(url, headers={"authorization": f"Bearer {TOKEN}"})
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("gateway").start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
        pass
    provider.shutdown()
    status = httpx.get(health, trust_env=False).json()
    assert (status["requests"], status["recognised"]) == (1, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) in (0, -signal.SIGTERM)
