"""tests/support/warm_python.py: what its program does like ``python``."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import warm_python

PYTHON = warm_python.interpreter()

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.executable == PYTHON, reason="this system has no pidfd"),
]

TOLD = """
import json, os, sys
print(json.dumps([__name__, sys.argv, sys.path[0], os.getcwd(), os.environ.get("ONLY_HERE"), sys.executable]))
print(sys.stdin.read(), file=sys.stderr)
sys.exit(7)
"""


def run(*words: object, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([PYTHON, *map(str, words)], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("way", ["file", "-m", "-c"])
def test_a_program_runs_as_in_python(tmp_path: Path, way: str):
    """Arguments, path, working directory, environment, streams, exit status."""
    program = tmp_path / "told.py"
    program.write_text(TOLD)
    words = {"file": (program,), "-m": ("-m", "told"), "-c": ("-c", TOLD)}[way]
    done = run(*words, "--option", cwd=tmp_path, env={**os.environ, "ONLY_HERE": "1"}, input="hello")
    assert done.returncode == 7, done.stderr
    name = "-c" if way == "-c" else str(program)
    expected = ["__main__", [name, "--option"], str(tmp_path), str(tmp_path), "1", PYTHON]
    assert json.loads(done.stdout) == expected
    assert done.stderr == "hello\n"


def test_a_child_has_what_takes_long_and_nothing_that_reads_the_environment(tmp_path: Path):
    program = tmp_path / "loaded.py"
    program.write_text("import json, sys; print(json.dumps([*sys.modules]))")
    loaded = json.loads(run(program).stdout)
    assert {"mlflow", "sqlalchemy", "litellm"} <= {*loaded}
    assert [name for name in loaded if name.startswith(("agent_gateway_client", "mlflow.server", "polars"))] == []


def test_an_error_ends_it_with_a_traceback(tmp_path: Path):
    program = tmp_path / "failing.py"
    program.write_text("1 / 0")
    done = run(program)
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_child_too(tmp_path: Path, number: signal.Signals):
    """The pipe ends when the child no longer has it."""
    program = tmp_path / "waiting.py"
    program.write_text("import time\nprint('up', flush=True)\ntime.sleep(300)")
    process = subprocess.Popen([PYTHON, str(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout:
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(60) == -number
        assert process.stdout.read() == ""


def test_other_arguments_run_the_real_python():
    code = "import sys; print(sys.executable, sys.flags.isolated)"
    assert run("-I", "-c", code).stdout == f"{sys.executable} 1\n"
