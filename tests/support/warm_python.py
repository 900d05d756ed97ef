"""A Python for the tests' programs that starts in a tenth of a second, because their packages are already imported.

A server spends up to ten seconds of processor time on importing MLflow, LiteLLM and what these import, and the tests
start dozens. So they run the program that `interpreter` names instead of ``python``: it asks one process, which has
imported all of it, for a fork. Working directory, environment, open files, signals and the exit status are the
program's. The child runs the module or file as ``__main__``; it imports this package and MLflow's server itself, as
they read the environment then. What it starts with ``sys.executable`` or multiprocessing starts in the same way.

The imports happen when the first program asks. Options other than ``-u``, ``-m`` and ``-c`` run the real Python
instead. On systems without pidfd (macOS, Windows), `interpreter` returns ``sys.executable``.

LiteLLM Proxy itself is not imported before the fork, although that takes four seconds: such a proxy has crashed.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import logging
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing import spawn
from pathlib import Path
from typing import Any, NamedTuple

_VARIABLE = "WARM_PYTHON"
"""The environment variable with the program's path, for pytest's workers."""

_MODULES = (
    "mlflow",
    "mlflow.gateway.budget",
    "mlflow.pyfunc",
    "mlflow.sagemaker.cli",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "flask",
    "fastapi",
    "uvicorn.main",
    "uvicorn.protocols.http.auto",
    "aiohttp",
    "litellm",
    "litellm.proxy._types",
    "mcp",
    "redis.asyncio",
)

# -S, as finding site-packages takes most of the time in which an empty Python starts.
_PROGRAM = """#!{python} -ISE
import json, os, signal, socket, sys

def passed(number):
    try:
        return os.get_inheritable(number)
    except OSError:
        return False

words = sys.argv[1:]
if words[:1] == ["-u"]:
    words = words[1:]
    os.environ["PYTHONUNBUFFERED"] = "1"
streams = [0, 1, 2, *(number for number in map(int, os.listdir("/proc/self/fd")) if number > 2 and passed(number))]
connection = socket.socket(socket.AF_UNIX)
try:
    if not words or (words[0].startswith("-") and words[0] not in ("-m", "-c")):
        raise ConnectionError
    connection.connect("{address}")
except OSError:
    os.execv("{python}", ["{python}", *words])
child, early = 0, []

def forward(number, frame):
    if child:
        os.kill(child, number)
    else:
        early.append(number)

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, forward)
request = json.dumps([words, __file__, os.getcwd(), dict(os.environ), streams]).encode()
socket.send_fds(connection, [len(request).to_bytes(4, "big")], streams)
connection.sendall(request)
for number in streams[3:]:
    os.close(number)
answers = connection.makefile()
child = int(answers.readline())
for number in early:
    os.kill(child, number)
status = int(answers.readline())
if status < 0:
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""

_SERVE = "import runpy, socket; runpy.run_path({!r})['_serve'](socket.socket(fileno=0))"


def interpreter() -> str:
    """Return the program to run in place of ``python``."""
    return os.environ.get(_VARIABLE, sys.executable)


def start() -> None:
    """Offer the program to this process and to those that it starts, until it ends."""
    if _VARIABLE in os.environ or not hasattr(os, "pidfd_open"):
        return
    folder = tempfile.TemporaryDirectory(prefix="warm-python-")
    address, program = Path(folder.name) / "socket", Path(folder.name) / "python"
    program.write_text(_PROGRAM.format(python=sys.executable, address=address))
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE.format(__file__)],
            stdin=listener,
            stdout=subprocess.DEVNULL,
            cwd=folder.name,
            start_new_session=True,
        )
    os.environ[_VARIABLE] = str(program)

    def stop() -> None:
        process.terminate()
        process.wait()
        folder.cleanup()

    atexit.register(stop)


class _Child(NamedTuple):
    """A forked process.

    Attributes:
        pid: Its process id, which is also its process group id.
        end: A descriptor that becomes readable when it ends.
        connection: To the program that asked for it; becomes readable when that ends.
    """

    pid: int
    end: int
    connection: socket.socket

    def finish(self) -> None:
        """Report how it ended; if its program ended first, kill it and all that it started."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
        with contextlib.suppress(OSError):
            self.connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        self.close()

    def close(self) -> None:
        """Close both descriptors."""
        self.connection.close()
        os.close(self.end)


def _serve(listener: socket.socket) -> None:
    """Fork a child for each program that connects, until the tests end."""
    parent = os.getppid()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while os.getppid() == parent:
            # One event at a time, as both descriptors of a child may be readable.
            for key, _ in selector.select(timeout=1)[:1]:
                if child := key.data:
                    selector.unregister(child.connection)
                    selector.unregister(child.end)
                    child.finish()
                    continue
                connection, _ = listener.accept()
                request, streams = _receive(connection)
                _import_modules()
                if not (pid := os.fork()):
                    for other in {key.data for key in selector.get_map().values()} - {None}:
                        other.close()
                    selector.close()
                    listener.close()
                    connection.close()
                    _end(_status(*request, streams))
                for stream in streams:
                    os.close(stream)
                connection.sendall(b"%d\n" % pid)
                child = _Child(pid, os.pidfd_open(pid), connection)
                selector.register(child.connection, selectors.EVENT_READ, child)
                selector.register(child.end, selectors.EVENT_READ, child)


def _receive(connection: socket.socket) -> tuple[list[Any], list[int]]:
    """Return what a program asks for, and the files that it was given, the standard streams first."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 64)
    with connection.makefile("rb") as file:
        return json.loads(file.read(int.from_bytes(size, "big"))), streams


_set_by_imports: dict[str, str] = {}
"""Environment variables, such as that with the folder of LiteLLM's tokenizers."""


def _import_modules() -> None:
    if gc.get_freeze_count():
        return
    before = dict(os.environ)
    # It starts a thread, and at its end a child would wait for what the thread does. MLflow can do without.
    sys.modules["polars"] = None  # type: ignore[assignment]
    for name in _MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    del sys.modules["polars"]
    _set_by_imports.update({name: value for name, value in os.environ.items() if before.get(name) != value})
    assert not any(name.startswith(("mlflow.server", "agent_gateway_client")) for name in sys.modules)
    gc.collect()
    # A child copies no memory for its garbage collections.
    gc.freeze()


def _status(*request: Any) -> int:
    """Run the program, and return the exit status; an error, or a text as status, ends the child as it ends Python."""
    try:
        _run(*request)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        return ended.code or 0
    return 0


def _end(status: int) -> None:
    """End as Python does, except that the imported modules are not taken apart, which takes longer than the start."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(
    words: list[str],
    program: str,
    directory: str,
    environment: dict[str, str],
    numbers: list[int],
    streams: list[int],
) -> None:
    """Become the program: run its module or file as ``python`` does."""
    import fcntl  # Windows has none.

    os.setsid()
    # First out of the way of each other's numbers.
    moved = [fcntl.fcntl(stream, fcntl.F_DUPFD, 256) for stream in streams]
    for stream in streams:
        os.close(stream)
    for number, stream in zip(numbers, moved, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update({**_set_by_imports, **environment})
    sys.stdout.reconfigure(write_through="PYTHONUNBUFFERED" in environment)
    # MLflow has read it when it was imported.
    logging.getLogger("mlflow").setLevel(environment.get("MLFLOW_LOGGING_LEVEL") or logging.INFO)
    sys.executable = program
    spawn.set_executable(program)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, directory)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, directory)
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
