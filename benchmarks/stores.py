"""Stores of the benchmarks besides MLflow's SQLite: PostgreSQL, and an OTLP endpoint that discards."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent_gateway_client.demo._port import Reservation

POSTGRES_VARIABLE = "BENCHMARKS_POSTGRES_URI"
"""An empty database to use instead of starting one: ``postgresql+psycopg://user@host/name``."""

_SINK = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_port, flush=True)
server.serve_forever()
"""


def no_postgres() -> str | None:
    """Return why PostgreSQL cannot run here; ``None`` if it can."""
    try:
        import psycopg  # noqa: F401
    except ModuleNotFoundError:
        return "the package psycopg is not installed"
    if os.environ.get(POSTGRES_VARIABLE) or shutil.which("initdb"):
        return None
    return f"initdb is not in PATH, and {POSTGRES_VARIABLE} is not set"


@contextmanager
def postgres(database: str = "postgres") -> Iterator[str]:
    """Yield the URI of an empty database: the environment's, or that of a server started for it."""
    if uri := os.environ.get(POSTGRES_VARIABLE):
        yield uri
        return
    # PostgreSQL refuses to run as root; it runs as ``nobody``, in a directory that this user can read.
    user: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/", **user}
    with tempfile.TemporaryDirectory(prefix="agent-gateway-", ignore_cleanup_errors=True) as directory:
        os.chmod(directory, 0o777)
        data = str(Path(directory) / "data")
        binaries = Path(os.path.realpath(shutil.which("initdb") or "initdb")).parent
        subprocess.run([binaries / "initdb", "-D", data, "-U", "mlflow", "-A", "trust", "-N"], **quiet)
        reserved = Reservation()
        options = f"-h 127.0.0.1 -p {reserved.port} -k {directory}"
        reserved.release()
        log = str(Path(directory) / "log")
        subprocess.run([binaries / "pg_ctl", "-D", data, "-o", options, "-l", log, "-w", "start"], **quiet)
        try:
            yield f"postgresql+psycopg://mlflow@127.0.0.1:{reserved.port}/{database}"
        finally:
            subprocess.run([binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **quiet)


@contextmanager
def otlp_sink() -> Iterator[str]:
    """Yield the URL of an OTLP endpoint in a separate process that accepts everything and stores nothing."""
    process = subprocess.Popen([sys.executable, "-c", _SINK], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


def waited(seconds: float, until: Any) -> float | None:
    """Return the seconds until something was there; ``None`` after the timeout."""
    begin = time.perf_counter()
    while not until():
        if time.perf_counter() - begin > seconds:
            return None
        time.sleep(0.02)
    return time.perf_counter() - begin
