"""An invalid value ends a gateway at its start, with one error."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import warm_python
from tests.support.litellm_proxy import MASTER_KEY

MLFLOW = [sys.executable, "-m", "mlflow", "server", "--app-name", "agent-gateway", "--port", "0"]
WARM_MLFLOW = [warm_python.interpreter(), *MLFLOW[1:]]
LITELLM_CONFIG = Path(__file__).parents[2] / "integrations" / "litellm-proxy" / "config.yaml"
LITELLM = [str(Path(sys.executable).with_name("litellm")), "--config", str(LITELLM_CONFIG), "--port", "0"]
CASES = {
    "exporter": (MLFLOW, {"AGENT_GATEWAY_EXPORTER": "carrier-pigeon"}, "AGENT_GATEWAY_EXPORTER is 'carrier-pigeon'"),
    "app": (WARM_MLFLOW, {"AGENT_GATEWAY_MLFLOW_APP": "nobody"}, "AGENT_GATEWAY_MLFLOW_APP is 'nobody'"),
    "no address": (LITELLM, {"OPENAI_API_KEY": "none", "LITELLM_MASTER_KEY": MASTER_KEY}, "set MLFLOW_TRACKING_URI"),
}
"""Commands, variables, and the expected error. Other invalid values are tested without a server, in tests/server."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str]]]:
    """Exit status and output of a server for each case; they run concurrently."""
    processes, logs = {}, {}
    for name, (command, variables, _) in CASES.items():
        directory = tmp_path_factory.mktemp("bad")
        own = {"MLFLOW_TRACKING_URI": "", "MLFLOW_BACKEND_STORE_URI": "sqlite:///a.db", **variables}
        with (directory / "log").open("wb") as log:
            processes[name] = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            logs[name] = Path(log.name)
    try:
        yield {name: (process.wait(120), logs[name].read_text()) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


@pytest.mark.parametrize("name", CASES)
def test_the_gateway_says_what_is_wrong(name: str, outputs: dict[str, tuple[int, str]]):
    """The gateway exits with a failure, and its log has the sentence about the value."""
    status, log = outputs[name]
    assert status != 0
    assert CASES[name][2] in log, log
    if CASES[name][0] is not LITELLM:
        assert log.count(CASES[name][2]) == 1, log
        assert log.count("Traceback (most recent call last)") <= 1, log
