"""Runs ``mlflow server`` in a subprocess, and stops it with all its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from agent_gateway_client.demo._port import KEEP_ALIVE_S, Reservation
from agent_gateway_client.errors import StartError

PYTHON = sys.executable
START_DEADLINE_S = 180.0
STOP_DEADLINE_S = 20.0
_LAST_LINES = 25

# Settings of the user, which could send the demo's traces elsewhere.
NOT_INHERITED = ("MLFLOW_", "_MLFLOW_", "OTEL_", "AGENT_GATEWAY_", "LITELLM_")

_ENVIRONMENT = {
    # The model provider is on loopback and uses plain HTTP; MLflow refuses both by default.
    "MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_GATEWAY_API_BASE_ALLOWED_SCHEMES": "http,https",
    # Encrypts the provider's API key, which is not a real one. A restart on the same database needs the same
    # passphrase.
    "MLFLOW_CRYPTO_KEK_PASSPHRASE": "agent-gateway demo: there is no secret in here",
    # Otherwise LiteLLM downloads its price list, and blocks without a network.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # The gateway does not need background jobs, which are three more processes.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "PYTHONUNBUFFERED": "1",
}


class MlflowServer:
    """An ``mlflow server`` on 127.0.0.1.

    Args:
        directory: The server's working directory, also for artifacts.
        backend_store_uri: MLflow's backend store.
        app_name: Value of ``--app-name``, or None for MLflow without the companion.
        port: TCP port; None for a free one.
        env: Environment variables for the server; they override those of the demo.
        options: More command line options, which override those of the demo.
    """

    def __init__(
        self,
        directory: Path,
        backend_store_uri: str,
        *,
        app_name: str | None,
        port: int | None,
        env: Mapping[str, str],
        options: Sequence[str] = (),
    ) -> None:
        self.log_path = directory / "server.log"
        self._directory = directory
        self._backend_store_uri = backend_store_uri
        self._app_name = app_name
        self._port = port
        self._env = env
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        # Another thread may stop the server while it starts.
        self._lock = threading.Lock()
        self._closed = False

    @property
    def url(self) -> str:
        """Base URL, such as ``http://127.0.0.1:41234``."""
        if self._port is None:
            raise StartError("The MLflow server is not running.")
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id of ``mlflow server``, which is also its process group id; None while it is stopped."""
        return self._process.pid if self._process else None

    def last_lines(self) -> str:
        """Return the last lines of the server's output."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-_LAST_LINES:])
        return ""

    def start(self) -> None:
        """Start the server; returns when it answers. A restart uses the same port.

        Raises:
            StartError: The port is taken, or the server exits or does not answer; with its last lines.
        """
        reserved = Reservation(self._port or 0)
        self._port = reserved.port
        try:
            with self._lock:
                if self._closed:
                    raise StartError("The MLflow server has been closed.")
                process = self._process = self._spawn()
            self._wait_until_it_answers(process)
        except BaseException:
            self.stop()
            raise
        finally:
            reserved.release()

    def close(self) -> None:
        """Stop the server for good."""
        with self._lock:
            self._closed = True
        self.stop()

    def stop(self) -> None:
        """Stop the server and every process it started."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        # `mlflow server` forwards the signal. Sent to the whole group, uvicorn would get it twice and exit without
        # a flush.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_DEADLINE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                self._command(),
                cwd=self._directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A new process group: killing it also kills the workers, and Ctrl-C in the terminal does not reach
                # the server.
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        command = [PYTHON, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", self._backend_store_uri]
        command += ["--artifacts-destination", str(self._directory / "artifacts")]
        # An open stream must not delay the stop.
        command += ["--uvicorn-opts", f"--timeout-graceful-shutdown 5 --timeout-keep-alive {KEEP_ALIVE_S}"]
        command += self._options
        return command + (["--app-name", self._app_name] if self._app_name else [])

    def _environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)}
        return {**inherited, **_ENVIRONMENT, **self._env}

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        problem = f"did not answer within {START_DEADLINE_S:.0f} s"
        with httpx.Client(trust_env=False, timeout=5) as client:
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    problem = f"ended with status {process.returncode}"
                    break
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.url}/health").status_code == httpx.codes.OK:
                        return
                time.sleep(0.1)
        raise StartError(f"`mlflow server` {problem}. Its last lines:\n{self.last_lines()}")
