"""`agent-gateway demo`, as a user runs it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import warm_python

pytestmark = pytest.mark.e2e

COMMAND = str(Path(sys.executable).parent / "agent-gateway")
DEADLINE_S = 300


@contextlib.contextmanager
def running(*arguments: str, directory: Path, python: str | None = None, **env: str) -> Iterator[subprocess.Popen[str]]:
    """The command, with its temporary files below `directory`."""
    process = subprocess.Popen(
        [*filter(None, [python]), COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(directory), **env},
    )
    try:
        yield process
    finally:
        # Has no effect on a process that has ended.
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def run(*arguments: str, directory: Path, **env: Any) -> tuple[int, str, str]:
    with running(*arguments, directory=directory, **env) as process:
        out, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, out, err


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_json_is_one_object_with_every_call_closed_and_the_ui_stays_up(tmp_path: Path):
    """By the contract in the documentation; Ctrl-C ends --keep, with the exit status of the calls."""
    port = free_port()
    # Settings that would send the traces elsewhere, or switch them off.
    elsewhere = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_TRACE_SAMPLING_RATIO": "0"}
    with running("demo", "--json", "--keep", "--port", str(port), directory=tmp_path, **elsewhere) as process:
        assert process.stdout
        lines = [process.stdout.readline()]
        while lines[-1] not in ("}\n", ""):
            lines.append(process.stdout.readline())
        report = json.loads("".join(lines))
        address = f"http://127.0.0.1:{port}"
        assert "<html" in httpx.get(f"{address}/").text
        # The server is in a process group of its own, so Ctrl-C does not reach it by itself.
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err
    assert out == ""
    assert address in err
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)
    assert list(tmp_path.glob("agent-gateway-*")) == []

    calls = report.pop("calls")
    assert report == {"tracking_uri": address, "experiment_id": report["experiment_id"], "closed": 22, "total": 22}
    assert len(calls) == 22
    assert {call["mode"] for call in calls} == {
        "tools", "stream", "async", "embeddings", "responses", "responses-stream", "fallback", "failure"
    }  # fmt: skip
    for call in calls:
        mirror = call["mirror"]
        assert (call["framework"], call["closed"], call["reason"]) == ("openai", True, None)
        assert re.fullmatch(r"tr-[0-9a-f]{32}", call["trace_id"])
        assert re.fullmatch(r"tr-[0-9a-f]{32}", mirror["linked_trace_id"])
        assert mirror["linked_trace_id"] != call["trace_id"]
        assert mirror["name"] == f"gateway/{call['endpoint']}"
        assert mirror["parent_id"] == call["parent_span"]
        assert mirror["start_time_ns"] < mirror["end_time_ns"]
        statuses = [attempt["status"] for attempt in mirror["attempts"]]
        assert statuses == {"fallback": ["ERROR", "OK"], "failure": ["ERROR"]}.get(call["mode"], ["OK"])
        assert mirror["status"] == statuses[-1]
        for attempt in mirror["attempts"]:
            assert attempt["model"]
            assert attempt["provider"] == "openai"
            assert bool(attempt["tokens"]) == (attempt["status"] == "OK")
    assert len({call["parent_span"] for call in calls}) == len(calls)
    assert {call["trace_id"] for call in calls if call["instrumentation"] == "autolog"}.isdisjoint(
        call["trace_id"] for call in calls if call["instrumentation"] == "start_span"
    )


def test_the_trees_show_the_gateway_below_the_agent(tmp_path: Path):
    status, out, err = run("demo", directory=tmp_path, python=warm_python.interpreter())
    assert status == 0, err
    assert "Traceback" not in err
    assert "Warming up" in out
    assert "22 of 22 calls are closed." in out
    assert re.search(r"MLflow's UI was at http://127\.0\.0\.1:\d+/#/experiments/\d+/traces; with --keep", out)
    assert out.count("trip agent") == 2
    # With autolog the client's own span is in between.
    below = r"choose a tool .*\n.*Completions .*\n.*gateway/chat .*-> tr-[0-9a-f]{32}\n.*provider/openai/gpt-4o-mini "
    assert re.search(below, out)
    assert re.search(r"choose a tool .*\n.*gateway/chat .*\n.*provider/openai/gpt-4o-mini .*6 \+ 1 tokens  \$0\.0", out)
    assert re.search(r"gateway/fallback .*OK.*\n.*gpt-4o-fail-503 .*ERROR 503.*\n.*gpt-4o-mini .*OK", out)


@pytest.mark.parametrize(("moment", "number"), [("Warming up", signal.SIGTERM), ("streams an answer", signal.SIGINT)])
def test_a_signal_ends_it_and_all_it_started(tmp_path: Path, moment: str, number: signal.Signals):
    """Twice in a row, as by an impatient user: what was started is stopped all the same."""
    port = free_port()
    python = warm_python.interpreter()
    with running("demo", "--port", str(port), directory=tmp_path, python=python, PYTHONUNBUFFERED="1") as process:
        assert process.stdout
        line = process.stdout.readline()
        while line and moment not in line:
            line = process.stdout.readline()
        assert moment in line
        process.send_signal(number)
        process.send_signal(number)
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 128 + number
    assert "Traceback" not in err
    with socket.create_server(("127.0.0.1", port)):
        assert list(tmp_path.glob("agent-gateway-*")) == []


def test_a_port_that_is_taken_is_never_used(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.setblocking(False)
        port = taken.getsockname()[1]
        status, out, err = run("demo", "--json", "--port", str(port), directory=tmp_path)
        with pytest.raises(BlockingIOError):
            taken.accept()
    assert status == 1
    assert out == ""
    assert f"Error: Port {port} on 127.0.0.1 cannot be used" in err
    assert "Traceback" not in err


def test_a_server_that_does_not_start_is_reported_with_its_last_lines(tmp_path: Path):
    """The machine's own Python ends `mlflow server` here, which stands for whatever may keep it from starting."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if sys.orig_argv[1:4] == ['-m', 'mlflow', 'server']:\n"
        "    print('The database is on holiday.', flush=True)\n"
        "    os._exit(3)\n"
    )
    status, out, err = run("demo", "--json", directory=tmp_path, PYTHONPATH=str(tmp_path))
    assert status == 1
    assert out == ""
    assert "Error: `mlflow server` ended with status 3. Its last lines:\nThe database is on holiday.\n" in err
    assert "Traceback" not in err
    assert list(tmp_path.glob("agent-gateway-*")) == []
