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


@pytest.mark.parametrize("way", ["file", "-m", "-c", "-u"])
def test_a_program_runs_as_in_python(tmp_path: Path, way: str):
    """Arguments, path, working directory, environment, streams, exit status."""
    program = tmp_path / "told.py"
    program.write_text(TOLD)
    words = {"file": (program,), "-m": ("-m", "told"), "-c": ("-c", TOLD), "-u": ("-u", "-c", TOLD)}[way]
    done = run(*words, "--option", cwd=tmp_path, env={**os.environ, "ONLY_HERE": "1"}, input="hello")
    assert done.returncode == 7, done.stderr
    name = "-c" if way in ("-c", "-u") else str(program)
    expected = ["__main__", [name, "--option"], str(tmp_path), str(tmp_path), "1", PYTHON]
    assert json.loads(done.stdout) == expected
    assert done.stderr == "hello\n"


def test_files_of_the_program_keep_their_numbers(tmp_path: Path):
    """As multiprocessing passes them, also where the numbers are those of other files in between."""
    ends = [os.pipe() for _ in range(3)]
    numbers = [write for _, write in reversed(ends)]
    code = "import os, sys\nfor number in map(int, sys.argv[1:]): os.write(number, str(number).encode())"
    assert run("-c", code, *numbers, pass_fds=numbers).returncode == 0
    for read, write in ends:
        os.close(write)
        assert os.read(read, 99) == str(write).encode()
        assert os.read(read, 99) == b""
        os.close(read)


def test_processes_of_multiprocessing_start_like_their_program(tmp_path: Path):
    """They have the same modules, and get their work through files that the program opened."""
    program = tmp_path / "parent.py"
    program.write_text(
        "import multiprocessing, sys\n"
        "def work(pipe):\n"
        "    pipe.send([__name__, sys.executable, 'mlflow' in sys.modules])\n"
        "    sys.exit(5)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    mine, theirs = context.Pipe()\n"
        "    process = context.Process(target=work, args=(theirs,))\n"
        "    process.start()\n"
        "    print(mine.recv())\n"
        "    process.join()\n"
        "    sys.exit(process.exitcode)\n"
    )
    done = run(program)
    assert (done.stdout, done.returncode) == (f"{['__mp_main__', PYTHON, True]}\n", 5), done.stderr


def test_a_child_has_what_takes_long_and_nothing_that_reads_the_environment(tmp_path: Path):
    program = tmp_path / "loaded.py"
    program.write_text("import json, sys; print(json.dumps([*sys.modules]))")
    loaded = json.loads(run(program).stdout)
    assert {"mlflow", "sqlalchemy", "litellm"} <= {*loaded}
    assert [name for name in loaded if name.startswith(("agent_gateway_client", "mlflow.server", "polars"))] == []


def test_a_child_has_the_variables_that_imports_set():
    """LiteLLM names the folder of its tokenizers, which it would download otherwise."""
    code = "import json, mlflow, litellm, os; print(json.dumps(dict(os.environ)))"
    # Of Polars, which a child does not have.
    environment = {name: value for name, value in os.environ.items() if name != "_RJEM_MALLOC_CONF"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    expected = json.loads(subprocess.check_output(command, text=True, env=environment))
    expected.pop("_RJEM_MALLOC_CONF", None)
    assert json.loads(run("-c", code, env=environment).stdout) == expected


def test_this_process_names_the_real_python():
    """Also if it is one of several processes of pytest, which start warm."""
    assert subprocess.check_output([sys.executable, "-c", "import sys; print('mlflow' in sys.modules)"]) == b"False\n"


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
