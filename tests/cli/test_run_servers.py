"""``agent-gateway run`` and ``opentelemetry-instrument`` with real servers and child processes."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent_gateway_client.demo._port import Reservation
from tests.cli.test_run import ROOT, TRACEPARENT, agent_gateway, server, write  # noqa: F401
from tests.support.http_server import HttpServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

PROGRAMS = Path(sys.executable).parent
"""Where the programs of this environment are."""

DEADLINE_S = 120.0

APPLICATION = """
import os, httpx, requests
from opentelemetry import context, trace
remote = trace.NonRecordingSpan(trace.SpanContext(0xA, 0xB, True, trace.TraceFlags(1)))
gateway = os.environ["AGENT_GATEWAY_URLS"]

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    context.attach(trace.set_span_in_context(remote))
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(gateway)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

def wsgi(environ, start_response):
    context.attach(trace.set_span_in_context(remote))
    requests.get(gateway)
    start_response("200 OK", [("content-length", "2")])
    return [b"ok"]
"""

UVICORN = ("--port", "PORT", "app:asgi")
GUNICORN = ("--bind", "127.0.0.1:PORT", "app:wsgi")

SERVERS: dict[str, tuple[str, ...]] = {
    "uvicorn": ("uvicorn", *UVICORN),
    "uvicorn, reloading": ("uvicorn", "--reload", *UVICORN),
    "uvicorn, 2 workers": ("uvicorn", "--workers", "2", *UVICORN),
    "python -m uvicorn": (sys.executable, "-m", "uvicorn", *UVICORN),
    "gunicorn": ("gunicorn", "--workers", "2", *GUNICORN),
    "gunicorn, preloaded": ("gunicorn", "--preload", *GUNICORN),
    "gunicorn, threads": ("gunicorn", "--threads", "2", *GUNICORN),
}


@contextmanager
def serving(folder: Path, gateway: str, command: tuple[str, ...]) -> Iterator[str]:
    """Run a server as a user would, and yield its address."""
    reserved = Reservation()
    program, *arguments = (part.replace("PORT", str(reserved.port)) for part in command)
    run = [sys.executable, "-m", "agent_gateway_client", "run", "--gateway", gateway, "--"]
    process = subprocess.Popen(
        [*run, str(PROGRAMS / program), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{reserved.port}"
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        # Workers that it has left behind.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reserved.release()


def get(address: str) -> bytes:
    """Return what a server answers, once it answers at all."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=DEADLINE_S) as response:
                answer: bytes = response.read()
                return answer
        except OSError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_joined(name: str, server: HttpServer, tmp_path: Path):  # noqa: F811
    """What an unchanged application sends while it serves a request carries the span, in every kind of worker."""
    for needed in ("gunicorn" if "gunicorn" in name else "uvicorn", "httpx", "requests"):
        pytest.importorskip(needed)
    (tmp_path / "app.py").write_text(APPLICATION)
    with serving(tmp_path, server.gateway, SERVERS[name]) as address:
        for _ in range(3):
            assert get(address) == b"ok"
    assert server.sent() == [[TRACEPARENT]] * 3


MULTIPROCESSING = """
def start(url):
    import multiprocessing
    process = multiprocessing.get_context("METHOD").Process(target=send, args=(url,))
    process.start()
    process.join()
"""
CHILDREN = {
    **{method: MULTIPROCESSING.replace("METHOD", method) for method in ("fork", "forkserver", "spawn")},
    "pool of processes": """
def start(url):
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(1) as pool:
        pool.submit(send, url).result()
""",
    "subprocess": """
def start(url):
    import subprocess
    subprocess.run([sys.executable, "-c", "import sys, program; program.send(sys.argv[1])", url], check=True)
""",
}

SENDER = """
def send(url):
    import requests
    context.attach(trace.set_span_in_context(remote))
    requests.get(url)
"""


@pytest.mark.parametrize("name", CHILDREN)
def test_child_processes_are_joined(name: str, server: HttpServer, write: Any, tmp_path: Path):  # noqa: F811
    """A child process that sends requests is covered, however it is started."""
    pytest.importorskip("requests")
    program = write(f"{SENDER}{CHILDREN[name]}\nif __name__ == '__main__':\n    start(url)\n")
    ended = agent_gateway(
        *("run", "--gateway", server.gateway, "--", sys.executable, program, server.gateway),
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert server.sent() == [[TRACEPARENT]]


INSTRUMENTED = {
    "requests": """
        import requests
        requests.get(url)
    """,
    "httpx, which OpenTelemetry instruments too": """
        import os, httpx, mlflow
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
        assert HTTPXClientInstrumentor().is_instrumented_by_opentelemetry
        with mlflow.start_span("agent") as span:
            httpx.get(url, trust_env=False)
            context = span._span.get_span_context()
        print(f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}")
        os._exit(0)  # There is no server that the trace could go to.
    """,
}


@pytest.mark.parametrize("name", INSTRUMENTED)
def test_opentelemetry_instrument(name: str, server: HttpServer, write: Any):  # noqa: F811
    """The real command finds our entry point and instruments the program, with no line changed."""
    for needed in ("opentelemetry.instrumentation", "requests", "httpx"):
        pytest.importorskip(needed)
    if "httpx" in name:
        pytest.importorskip("opentelemetry.instrumentation.httpx")
    command = PROGRAMS / "opentelemetry-instrument"
    program = write(INSTRUMENTED[name])
    environment = {
        # An experiment of a test before would be looked up at the closed port.
        **{name: value for name, value in os.environ.items() if name != "MLFLOW_EXPERIMENT_ID"},
        "PYTHONPATH": str(ROOT),
        "AGENT_GATEWAY_URLS": server.gateway,
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "PYTHONUNBUFFERED": "1",
    }
    ended = subprocess.run(
        [str(command), sys.executable, program, server.gateway],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "agent-gateway" not in ended.stderr
    assert server.sent() == [[ended.stdout.strip() or TRACEPARENT]]
