"""Back ends for traces besides MLflow on SQLite: an OpenTelemetry collector, PostgreSQL, Arize Phoenix.

The collector and Phoenix are installed in a separate environment, ``.venv-backends`` (``make venv-backends``), or in
the one named by ``BACKENDS_VENV``. PostgreSQL is the system's.
"""

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
import pytest

from agent_gateway_client.demo._port import Reservation
from agent_gateway_client.demo._server import NOT_INHERITED
from tests.support import warm_python

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("BACKENDS_VENV") or ROOT / ".venv-backends")
FASTAPI_GATEWAY = ROOT / "integrations" / "fastapi-gateway"
START_DEADLINE_S = 180.0
STOP_DEADLINE_S = 60.0


def in_backends(program: str) -> Path:
    """Return a program of the environment, or skip the test if there is none; in CI it is required."""
    found = sorted(VENV.glob(f"bin/{program}")) or sorted(VENV.glob(f"lib/python*/site-packages/*/{program}"))
    if not found and "CI" not in os.environ:
        pytest.skip(f"{VENV} has no {program}: make venv-backends")
    assert found, f"{VENV} has no {program}"
    return found[0]


class Running:
    """A program in a separate process, as a context manager.

    Args:
        directory: Its working directory, which also gets its output.
        command: The program and its arguments.
        answers: Returns whether it is ready.
        environment: Its variables, in addition to this process's variables that are not about tracing.
    """

    def __init__(
        self, directory: Path, command: Sequence[object], answers: Callable[[], bool], environment: Mapping[str, str]
    ) -> None:
        self._directory = directory
        self._log_path = directory / "output.log"
        self._command = [str(word) for word in command]
        self._answers = answers
        self._environment = dict(environment)

    def log(self) -> str:
        """Return its output so far."""
        return self._log_path.read_text(errors="replace")

    def __enter__(self) -> "Running":
        inherited = {k: v for k, v in os.environ.items() if not k.startswith((*NOT_INHERITED, "ROTEL_", "PHOENIX_"))}
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                env={**inherited, "NO_PROXY": "127.0.0.1", "PYTHONUNBUFFERED": "1", **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            while not self._answers():
                assert self._process.poll() is None, self.log()[-3000:]
                assert time.monotonic() < deadline, self.log()[-3000:]
                time.sleep(0.05)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop it as an operator does, and then every process that it may have left behind."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_DEADLINE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __exit__(self, *error: object) -> None:
        self.stop()


def answers_http(url: str) -> Callable[[], bool]:
    """Return a function that checks whether a server answers at a URL, with any answer."""

    def answers() -> bool:
        try:
            return httpx.get(url, timeout=5, trust_env=False).status_code > 0
        except httpx.HTTPError:
            return False

    return answers


def free_port() -> int:
    """Return a port of loopback that is currently free."""
    reserved = Reservation()
    reserved.release()
    return reserved.port


class Collector(Running):
    """The OpenTelemetry collector that ``integrations/otel-collector/collector.sh`` starts.

    Args:
        directory: Its working directory.
        relay_url: The relay that it sends spans to.
    """

    def __init__(self, directory: Path, relay_url: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = {
            "ROTEL_AGENT": str(self.program()),
            "ROTEL_OTLP_HTTP_ENDPOINT": f"127.0.0.1:{port}",
            "ROTEL_OTLP_GRPC_ENDPOINT": f"127.0.0.1:{free_port()}",
            "RELAY_URL": relay_url,
        }
        script = ROOT / "integrations" / "otel-collector" / "collector.sh"
        super().__init__(directory, ["sh", script], answers_http(self.url), environment)

    @staticmethod
    def program() -> Path:
        """Return the collector's program; skips the test if it cannot be installed."""
        if (platform.system(), platform.machine(), sys.version_info[:2]) != ("Linux", "x86_64", (3, 11)):
            pytest.skip("the package rotel has a collector for Linux on x86-64 with Python 3.11 only")
        program = in_backends("rotel-agent")
        tried = subprocess.run([program, "--version"], capture_output=True, text=True)
        if tried.returncode and "CI" not in os.environ:
            pytest.skip(f"the collector does not run: {tried.stderr.strip()} (apt-get install libpython3.11)")
        assert tried.returncode == 0, tried.stderr
        return program


class Phoenix(Running):
    """Arize Phoenix with its own database."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = {
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": str(free_port()),
            "PHOENIX_WORKING_DIR": str(directory),
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        }
        super().__init__(directory, [in_backends("phoenix"), "serve"], answers_http(f"{self.url}/healthz"), environment)


def over_otlp(url: str) -> dict[str, str]:
    """Return the variables for a gateway that exports its mirrors over OTLP."""
    return {"AGENT_GATEWAY_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": url}


class FastapiGateway(Running):
    """The gateway of ``integrations/fastapi-gateway``.

    Args:
        directory: The folder for its output.
        provider_url: The base URL of the model provider's OpenAI API.
        exporter: The variables that configure the export of its mirrors.
    """

    def __init__(self, directory: Path, provider_url: str, **exporter: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = {"PROVIDER_URL": provider_url, **exporter}
        command = [warm_python.interpreter(), "-m", "uvicorn", "--app-dir", FASTAPI_GATEWAY, "gateway:app"]
        command += ["--port", port, "--no-access-log"]
        super().__init__(directory, command, answers_http(self.url), environment)


class Postgres:
    """A PostgreSQL cluster on loopback, as a context manager. Its superuser needs no password."""

    def __init__(self) -> None:
        # Debian does not put it on PATH.
        clusters = map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        installed = shutil.which("initdb") or max(clusters, default="")
        if not installed and "CI" not in os.environ:
            pytest.skip("PostgreSQL's initdb is not installed: apt-get install postgresql")
        assert installed, "PostgreSQL's initdb is not installed"
        self._programs = Path(installed).resolve().parent
        self._port = free_port()
        # It refuses to run as root, and its own user cannot read root's directories.
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []

    @property
    def url(self) -> str:
        """The database as a SQLAlchemy URL."""
        return f"postgresql+psycopg://mlflow@127.0.0.1:{self._port}/postgres"

    @property
    def conninfo(self) -> str:
        """The database as a psycopg connection string."""
        return f"host=127.0.0.1 port={self._port} user=mlflow dbname=postgres"

    def __enter__(self) -> "Postgres":
        self._directory = Path(tempfile.mkdtemp(prefix="agent-gateway-postgres-"))
        if self._as_user:
            shutil.chown(self._directory, "postgres", "postgres")
        try:
            self._run("initdb", "-D", "data", "-U", "mlflow", "-A", "trust", "-E", "UTF8", "--no-sync")
            options = f"-h 127.0.0.1 -p {self._port} -k {self._directory} -c fsync=off -c shared_buffers=64MB"
            self._run("pg_ctl", "-D", "data", "-w", "-t", "120", "-l", "log", "-o", options, "start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if (self._directory / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._programs / program), *arguments]
        # A file, not a pipe: the server that pg_ctl leaves running would keep a pipe open.
        with (self._directory / "output.log").open("ab") as output:
            done = subprocess.run(
                command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        assert done.returncode == 0, (self._directory / "output.log").read_text()
