"""A gateway that is forked after it was imported, as by ``gunicorn --preload``."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from agent_gateway_client.demo._port import Reservation
from tests.support.otlp_receiver import Receiver
from tests.support.server import DEADLINE_S, TRACE_ID

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork()")

CALLS = 40
GUNICORN = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2"]
FORK = """
import os, sys
from tests.support.server import DEADLINE_S, small_call
from agent_gateway_client.server.export.environment import exporter_from_environment

exporter = exporter_from_environment()
exporter.submit(small_call("before"))
assert exporter.flush(DEADLINE_S)
child = os.fork()
for number in range(20):
    exporter.submit(small_call(f"{'parent' if child else 'child'}-{number}"))
    assert exporter.flush(DEADLINE_S)
assert exporter.dropped == 0
if not child:
    # Libraries in C that MLflow brings may hang at the regular end of a process that was forked.
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
GATEWAY = """
from flask import Flask, request
from agent_gateway_client.server import gateway_call
from agent_gateway_client.server.shared import shared_exporter

shared_exporter()
app = Flask(__name__)

@app.post("/chat")
def chat():
    with gateway_call(request.headers, endpoint="chat") as call:
        call.attempt(provider="openai", model="m").end()
    return {}

@app.get("/health")
def health():
    return {}
"""


def environment(receiver: Receiver, exporter: str, directory: Path) -> dict[str, str]:
    path = [str(directory), str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "AGENT_GATEWAY_EXPORTER": exporter,
        "MLFLOW_TRACKING_URI": receiver.url,
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONWARNINGS": "ignore",
    }


@pytest.mark.parametrize("exporter", ["mlflow", "otlp"])
def test_parent_and_child_do_not_share_a_connection(exporter: str, tmp_path: Path):
    """Both keep sending their own calls once each: a connection opened before the fork belongs to one of them."""
    with Receiver() as receiver:
        done = subprocess.run(
            [sys.executable, "-c", FORK],
            env=environment(receiver, exporter, tmp_path),
            capture_output=True,
            text=True,
            timeout=3 * DEADLINE_S,
        )
        assert done.returncode == 0, done.stderr
    names = sorted(span.name for span in receiver.spans)
    expected = ["before", *(f"{who}-{number}" for who in ("parent", "child") for number in range(20))]
    assert names == sorted(f"gateway/{name}" for name in expected)
    assert receiver.tries == len(names)


def test_gunicorn_with_preload(tmp_path: Path):
    """Two workers of an application that was imported before the fork mirror their calls; SIGTERM loses none."""
    (tmp_path / "preloaded_gateway.py").write_text(GATEWAY)
    reserved = Reservation()
    log = tmp_path / "log"
    with Receiver() as receiver, log.open("wb") as output:
        process = subprocess.Popen(
            [*GUNICORN, "--bind", f"127.0.0.1:{reserved.port}", "preloaded_gateway:app"],
            cwd=tmp_path,
            env=environment(receiver, "otlp", tmp_path),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{reserved.port}"
            wait_until_it_answers(url, process, log)
            for number in range(1, CALLS + 1):
                headers = {"traceparent": f"00-{TRACE_ID:032x}-{number:016x}-01"}
                # One connection each, so that both workers get some.
                assert httpx.post(f"{url}/chat", headers=headers, timeout=DEADLINE_S).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
            reserved.release()
    parents = sorted(int(span.parent_span_id.hex(), 16) for span in receiver.spans if span.name == "gateway/chat")
    assert parents == list(range(1, CALLS + 1))


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
