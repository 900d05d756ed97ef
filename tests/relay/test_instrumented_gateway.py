"""The FastAPI gateway of integrations/opentelemetry-fastapi, with real instrumentations of the OpenAI client."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from agent_gateway_client.demo.provider import Provider
from agent_gateway_client.relay import Limits, Relay
from agent_gateway_client.relay.serve import listen, url_of
from agent_gateway_client.server.call import GatewayCall
from tests.support.backends import in_backends
from tests.support.otlp_spans import CALLER, TRACE, Sink

GATEWAY = Path(__file__).parents[2] / "integrations" / "opentelemetry-fastapi" / "gateway.py"
OPENINFERENCE = "openinference.instrumentation.openai"
OPENLLMETRY = "opentelemetry.instrumentation.openai"
DEADLINE_S = 90.0

pytestmark = pytest.mark.beside
CANARY = "c4n4ry7f3a"


@contextlib.contextmanager
def relay_at() -> Iterator[tuple[str, Sink, Relay]]:
    """Serve a relay on loopback; yields the URL for traces, and the receiver of the calls."""
    sink = Sink()
    relay = Relay(sink, limits=Limits(settle_seconds=0.2))
    server = uvicorn.Server(uvicorn.Config(relay, log_level="error"))
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url_of(listening), sink, relay
        finally:
            server.should_exit = True
            thread.join()


def calls_through(directory: Path, instrumentations: list[str]) -> list[GatewayCall]:
    """Run the gateway with a successful and a failing call; return the relay's mirrors of their spans."""
    lines = [f"from {module} import OpenAIInstrumentor as Instrumentor{n}" for n, module in enumerate(instrumentations)]
    source = GATEWAY.read_text()
    own = f"from {OPENINFERENCE} import OpenAIInstrumentor\n"
    assert own in source
    source = source.replace(own, "\n".join(lines) + "\n")
    made = "\n".join(f"Instrumentor{number}().instrument()" for number in range(len(lines)))
    (directory / "gateway.py").write_text(source.replace("OpenAIInstrumentor().instrument()", made))
    with relay_at() as (url, sink, relay), Provider() as provider, listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
        free.close()
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "PROVIDER_URL": f"{provider.url}/v1",
            "OPENAI_API_KEY": "none",
        }
        command = [in_backends("python"), "-m", "uvicorn", "gateway:app", "--port", str(port), "--log-level", "error"]
        with subprocess.Popen(command, cwd=directory, env=environment) as process:
            try:
                _ask(f"http://127.0.0.1:{port}", process)
                deadline = time.monotonic() + DEADLINE_S
                while len(sink.calls) < 1 and time.monotonic() < deadline:
                    time.sleep(0.05)
            finally:
                process.terminate()
        relay.close()
    return sink.calls


def _ask(url: str, process: "subprocess.Popen[bytes]") -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": CANARY}]}
    headers = {"traceparent": f"00-{TRACE:032x}-{CALLER:016x}-01"}
    deadline = time.monotonic() + DEADLINE_S
    with httpx.Client(trust_env=False, timeout=DEADLINE_S) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None
            with contextlib.suppress(httpx.TransportError):
                assert client.post(f"{url}/v1/chat/completions", json=body, headers=headers).status_code == 200
                return
            time.sleep(0.1)
    raise AssertionError("the gateway did not answer")


@pytest.mark.parametrize(
    "instrumentations",
    [[OPENINFERENCE], [OPENLLMETRY], [OPENINFERENCE, OPENLLMETRY]],
    ids=lambda names: "+".join(names),
)
def test_a_gateway_that_knows_nothing_of_us(instrumentations: list[str], tmp_path: Path):
    """One mirror below the caller's span, with one attempt and no payload; tokens count once, also with both."""
    (call,) = calls_through(tmp_path, instrumentations)
    assert (call.parent.trace_id, call.parent.span_id) == (TRACE, CALLER)
    assert (call.http_status, call.error_type) == (200, None)
    (attempt,) = call.attempts
    assert (attempt.provider, attempt.model) == ("openai", "gpt-4o-mini")
    assert attempt.usage is not None
    assert (attempt.usage.input_tokens, attempt.usage.output_tokens) == (1, 3)
    assert CANARY not in repr(call)
