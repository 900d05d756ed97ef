"""The gateway of integrations/fastapi-gateway under uvicorn, in a separate process."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from agent_gateway_client.demo._port import KEEP_ALIVE_S, Reservation
from agent_gateway_client.demo._server import NOT_INHERITED
from tests.support import warm_python
from tests.support.e2e import DEADLINE_S
from tests.support.gateways import MODELS

FOLDER = Path(__file__).parents[2] / "integrations" / "fastapi-gateway"
START_DEADLINE_S = 120.0
RUN = """
import json, sys, gateway, uvicorn
gateway.MODELS.update(json.loads(sys.argv[1]))
uvicorn.run(gateway.app, port=int(sys.argv[2]), access_log=False, timeout_keep_alive=int(sys.argv[3]))
"""
"""Runs the folder's gateway with more models."""


@contextmanager
def fastapi_gateway(directory: Path, **environment: str) -> Iterator[str]:
    """A running gateway, with its output in a directory; yields its URL."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    log, reserved = directory / "log", Reservation()
    command = [warm_python.interpreter(), "-c", RUN, json.dumps(MODELS), str(reserved.port), str(KEEP_ALIVE_S)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=FOLDER, env={**inherited, **environment}, stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{reserved.port}"
    try:
        deadline = time.monotonic() + START_DEADLINE_S
        while process.poll() is None and not _answers(url) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        yield url
        process.terminate()
        assert process.wait(DEADLINE_S) in (0, -15), log.read_text()
    finally:
        process.kill()
        process.wait()
        reserved.release()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/openapi.json", timeout=5).is_success
    except httpx.HTTPError:
        return False
