"""The gateways in integrations/: each folder's configuration and agent, run unchanged."""

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

import httpx
import mlflow
from mlflow.entities import Span

from agent_gateway_client.demo._port import Reservation
from agent_gateway_client.demo.gateway import DemoGateway
from tests.support import warm_python
from tests.support.e2e import (
    USER,
    assert_linked,
    assert_mirror,
    children_of,
    complete_trace,
    mirrors_in,
    read_trace,
    wait_for,
)
from tests.support.litellm_proxy import DEADLINE_S, MASTER_KEY, LiteLLMProxy
from tests.support.server import assert_told

ROOT = Path(__file__).parents[2]
MLFLOW_GATEWAY = ROOT / "integrations" / "mlflow-gateway"
FLASK_GATEWAY = ROOT / "integrations" / "flask-gateway"
FASTAPI_GATEWAY = ROOT / "integrations" / "fastapi-gateway"
LITELLM_PROXY = ROOT / "integrations" / "litellm-proxy"
MINI = ("openai/gpt-4o-mini", "OK")
ATTEMPTS = {
    "ask": [MINI],
    "ask for a stream": [("openai/gpt-4o-fail-503", "ERROR"), MINI],
    "embed": [("openai/text-embedding-3-small", "OK")],
}
"""The steps of each folder's agent, and the models that its gateway must try for them."""


def run(folder: Path, script: str, gateway: DemoGateway, **environment: str) -> str:
    """Run a script of a folder with MLflow at the destination of the gateway's mirrors; returns its last line."""
    command = [warm_python.interpreter(), script]
    env = {**os.environ, "MLFLOW_TRACKING_URI": gateway.tracking_uri, **environment}
    ended = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()[-1]


def assert_all_is_there(told: str, **endpoints: str) -> list[Span]:
    """Assert that the agent's trace has a mirror of each step, and its tokens once; returns the mirrors.

    Args:
        told: What the agent has printed.
        endpoints: The endpoint of each step, by the step's first word.
    """
    trace = complete_trace(json.loads(told)["trace_id"], len(ATTEMPTS))
    mirrors = mirrors_in(trace)
    assert len(mirrors) == len(ATTEMPTS)
    steps = {span.name: span for span in trace.data.spans}
    total = 0
    for mirror, (name, attempts) in zip(mirrors, ATTEMPTS.items(), strict=True):
        assert [span.span_id for span in children_of(trace, steps[name])] == [mirror.span_id]
        *_, answered = assert_mirror(trace, mirror, steps[name], attempts)
        assert mirror.name == f"gateway/{endpoints[name.rpartition(' ')[2]]}"
        assert mirror.status.status_code == "OK"
        assert_told(mirror.attributes, {"gen_ai.request.stream": "stream" in name})
        total += answered.attributes["mlflow.chat.tokenUsage"]["total_tokens"]

    def counted() -> bool:
        now = read_trace(trace.info.trace_id)
        return bool(now and now.info.token_usage and now.info.token_usage["total_tokens"] == total)

    # The agent ends its trace as soon as it has its last answer: the total is set after the mirror.
    wait_for(f"{trace.info.trace_id} to have {total} tokens", counted)
    return mirrors


def test_mlflow_gateway(gateway: DemoGateway, tracing: str):
    """The folder's endpoints serve its agent, and each mirror links to the gateway's own trace."""
    provider = {"OPENAI_API_BASE": f"{gateway.provider.url}/v1", "OPENAI_API_KEY": "none"}
    assert run(MLFLOW_GATEWAY, "endpoints.py", gateway, **provider).startswith("endpoint search")
    told = run(MLFLOW_GATEWAY, "agent.py", gateway, GATEWAY_URL=gateway.gateway_url)
    for mirror in assert_all_is_there(told, ask="assistant", stream="assistant-with-fallback", embed="search"):
        assert_linked(mirror)


def test_fastapi_gateway(gateway: DemoGateway, fastapi_url: str, tracing: str):
    """The folder's gateway, in which two lines are about tracing, serves its agent."""
    told = run(FASTAPI_GATEWAY, "agent.py", gateway, GATEWAY_URL=fastapi_url)
    assert_all_is_there(told, ask="chat", stream="fallback", embed="embeddings")


def test_a_flask_gateway(gateway: DemoGateway, tracing: str, tmp_path: Path):
    """The folder's gateway serves its agent from gunicorn's threads."""
    reserved = Reservation()
    url = f"http://127.0.0.1:{reserved.port}"
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": gateway.tracking_uri,
        "PROVIDER_URL": f"{gateway.provider.url}/v1",
    }
    command = [sys.executable, "-m", "gunicorn", "--threads", "8", "--reuse-port", "--bind", url[7:], "gateway:app"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=FLASK_GATEWAY, env=environment, stdout=log, stderr=log)
    try:
        wait_for("gunicorn", lambda: server.poll() is not None or answers(url))
        told = run(FLASK_GATEWAY, "agent.py", gateway, GATEWAY_URL=url)
        assert_all_is_there(told, ask="chat", stream="fallback", embed="embeddings")
    finally:
        server.terminate()
        server.wait(DEADLINE_S)
        reserved.release()


def answers(url: str) -> bool:
    """Return whether a server answers, with any status."""
    try:
        return bool(httpx.get(url, timeout=5).status_code)
    except httpx.HTTPError:
        return False


class Relay(socketserver.ThreadingTCPServer):
    """Forwards requests to a server while it is open."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relayed)
        self.target = urlsplit(target)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.may_pass = threading.Event()
        self.may_pass.set()
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


def test_litellm_proxy(gateway: DemoGateway, tracing: str, tmp_path: Path):
    """The folder's configuration serves its agent; a proxy that is stopped ends when its mirrors are stored."""
    provider = {"OPENAI_API_BASE": f"{gateway.provider.url}/v1", "OPENAI_API_KEY": "none"}
    with (
        Relay(gateway.tracking_uri) as relay,
        LiteLLMProxy(tmp_path, LITELLM_PROXY / "config.yaml", MLFLOW_TRACKING_URI=relay.url, **provider) as proxy,
    ):
        told = run(LITELLM_PROXY, "agent.py", gateway, GATEWAY_URL=proxy.url, GATEWAY_KEY=MASTER_KEY)
        assert_all_is_there(told, ask="chat", stream="fallback", embed="embeddings")
        relay.may_pass.clear()
        with proxy.column.openai_client() as client, mlflow.start_span("step") as step:
            for _ in range(3):
                client.chat.completions.create(model="chat", messages=[USER])  # type: ignore[list-item]
        assert relay.is_holding.wait(DEADLINE_S)
        stopping = threading.Thread(target=proxy.stop)
        stopping.start()
        # A proxy without waiting mirrors ends within a second.
        stopping.join(2)
        relay.may_pass.set()
        stopping.join()
    assert len(mirrors_in(complete_trace(step.trace_id, 3))) == 3
