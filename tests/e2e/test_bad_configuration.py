"""A value that cannot work ends `mlflow server` at its start, with one error."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CASES = {
    "exporter": ({"AGENT_GATEWAY_EXPORTER": "carrier-pigeon"}, "AGENT_GATEWAY_EXPORTER is 'carrier-pigeon'"),
    "app": ({"AGENT_GATEWAY_MLFLOW_APP": "nobody"}, "AGENT_GATEWAY_MLFLOW_APP is 'nobody'"),
    "predicate": ({"AGENT_GATEWAY_MAY_JOIN": "nobody:may_join"}, "AGENT_GATEWAY_MAY_JOIN is 'nobody:may_join'"),
}
"""Variables, and what is said of them. All other bad values are tried without a server, in tests/server."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str]]]:
    """What a server of each case ended with and what it said; they run side by side."""
    processes = {}
    for name, (variables, _) in CASES.items():
        directory = tmp_path_factory.mktemp("bad")
        log = directory / "log"
        with log.open("wb") as output:
            processes[name] = (
                log,
                subprocess.Popen(
                    [sys.executable, "-m", "mlflow", "server", "--app-name", "agent-gateway", "--port", "0"],
                    cwd=directory,
                    env={
                        **os.environ,
                        "MLFLOW_TRACKING_URI": "",
                        "MLFLOW_BACKEND_STORE_URI": "sqlite:///a.db",
                        **variables,
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                ),
            )
    try:
        yield {name: (process.wait(120), Path(log).read_text()) for name, (log, process) in processes.items()}
    finally:
        for _, process in processes.values():
            process.kill()
            process.wait()


@pytest.mark.parametrize("name", CASES)
def test_the_server_says_what_is_wrong(name: str, outputs: dict[str, tuple[int, str]]):
    """The server ends with a failure, and its log has the sentence about the value exactly once."""
    status, log = outputs[name]
    assert status != 0
    assert log.count(CASES[name][1]) == 1, log
    assert log.count("Traceback (most recent call last)") <= 1, log
