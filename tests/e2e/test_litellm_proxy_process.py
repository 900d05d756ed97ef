"""The process of a real LiteLLM Proxy: how it starts and stops, and the folder that shows it."""

import contextlib
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pytest
from e2e.litellm_proxy import DEADLINE_S, MASTER_KEY, MIRROR, LiteLLMProxy, configuration
from e2e_support import USER, Database, assert_mirror, children_of, mirrors_in, read_trace, wait_for

from agent_gateway_client.demo.gateway import DemoGateway

FOLDER = Path(__file__).parents[2] / "integrations" / "litellm-proxy"


def test_the_folders_agent(gateway: DemoGateway, tracing: str, tmp_path: Path):
    """The folder's agent and configuration, as they are, give one trace with a mirror under each step."""
    provider = {"OPENAI_API_BASE": f"{gateway.provider.url}/v1", "OPENAI_API_KEY": "none"}
    config = FOLDER / "config.yaml"
    with LiteLLMProxy(tmp_path, config, MLFLOW_TRACKING_URI=gateway.tracking_uri, **provider) as proxy:
        own = {"MLFLOW_TRACKING_URI": gateway.tracking_uri, "GATEWAY_URL": proxy.url, "GATEWAY_KEY": MASTER_KEY}
        command = [sys.executable, str(FOLDER / "agent.py")]
        run = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 0, run.stderr
    trace_id = json.loads(run.stdout)["trace_id"]
    # The proxy was stopped, so its mirrors have been sent.
    trace = wait_for("the trace", lambda: read_trace(trace_id))
    assert (trace.info.state, len(mirrors_in(trace))) == ("OK", 3)
    mini = ("openai/gpt-4o-mini", "OK")
    expected = {
        "ask": ("gateway/chat", [mini]),
        "ask for a stream": ("gateway/fallback", [("openai/gpt-4o-fail-503", "ERROR"), mini]),
        "embed": ("gateway/embeddings", [("openai/text-embedding-3-small", "OK")]),
    }
    for step in trace.data.spans:
        if step.name in expected:
            (mirror,) = children_of(trace, step)
            assert_mirror(trace, mirror, step, expected[step.name][1])
            assert mirror.name == expected[step.name][0]


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "set MLFLOW_TRACKING_URI"),
        ({"AGENT_GATEWAY_EXPORTER": "pigeon"}, "the exporters are: mlflow, otlp"),
    ],
    ids=["no tracking URI", "unknown exporter"],
)
def test_an_environment_that_cannot_work_ends_the_start(environment: dict[str, str], told: str, tmp_path: Path):
    """The proxy does not start, and says what to do."""
    proxy = LiteLLMProxy(tmp_path, FOLDER / "config.yaml", OPENAI_API_KEY="none", **environment)
    with pytest.raises(AssertionError, match="litellm ended"), proxy:
        pass
    assert told in proxy.log()


class Relay(socketserver.ThreadingTCPServer):
    """Hands what it is sent on to a server, while it may."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relayed)
        self.target = urlsplit(target)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.may_pass = threading.Event()
        self.is_holding = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *error: Any) -> None:
        self.may_pass.set()
        self.shutdown()
        super().__exit__(*error)

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.may_pass.is_set():
                    self.is_holding.set()
                    assert self.may_pass.wait(DEADLINE_S)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class _Relayed(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        relay = self.server
        assert isinstance(relay, Relay)
        with socket.create_connection((relay.target.hostname, relay.target.port)) as upstream:
            back = threading.Thread(target=relay.pump, args=(upstream, self.request))
            back.start()
            relay.pump(self.request, upstream)
            back.join()


def test_a_proxy_that_is_stopped_sends_what_it_has(
    gateway: DemoGateway, tracing: str, database: Database, tmp_path: Path
):
    """The process ends when its mirrors are stored, also by a slow store. The callback may be one of a list."""
    config = configuration(gateway.provider.url, callbacks=[MIRROR])
    with (
        Relay(gateway.tracking_uri) as relay,
        LiteLLMProxy(tmp_path, config, MLFLOW_TRACKING_URI=relay.url) as proxy,
        proxy.openai_client() as client,
    ):
        relay.may_pass.set()
        with mlflow.start_span("step") as step:
            client.chat.completions.create(model="chat", messages=[USER])
            wait_for("the first mirror", lambda: database.spans(step.trace_id))
            relay.may_pass.clear()
            client.chat.completions.create(model="chat", messages=[USER])
            assert relay.is_holding.wait(DEADLINE_S)
            for _ in range(2):
                client.chat.completions.create(model="chat", messages=[USER])
        stopping = threading.Thread(target=proxy.stop)
        stopping.start()
        # Without a mirror to send, the process ends within a second.
        stopping.join(3)
        relay.may_pass.set()
        stopping.join()
    mlflow.flush_trace_async_logging()
    trace = mlflow.get_trace(step.trace_id)
    assert trace is not None
    assert [mirror.status.status_code for mirror in mirrors_in(trace)] == ["OK"] * 4
