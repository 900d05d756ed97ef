"""export.py at the edges of a process: its end, and a fork."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, threading
from tests.support.server import DEADLINE_S, MemoryDestination, small_call
from agent_gateway_client.server.export import Exporter
"""


def run(code: str) -> list[str]:
    """Run code in a new interpreter, and return the lines it prints."""
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT + code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("way_out", ["pass", "sys.exit()", "raise SystemExit(0)"])
def test_what_waits_is_sent_when_the_process_ends(way_out: str):
    """A process that ends by itself sends its last calls first."""
    lines = run(f"""
destination = MemoryDestination(lambda names: print(*names, flush=True))
Exporter(destination).submit(small_call("a"))
{way_out}
""")
    assert lines == ["gateway/a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork()")
def test_a_fork_sends_only_its_own_calls():
    """After a fork the child starts afresh: it sends its own calls, and the parent those that waited before."""
    lines = run("""
go_on = threading.Event()
destination = MemoryDestination(lambda names: go_on.wait(DEADLINE_S))
exporter = Exporter(destination)
exporter.submit(small_call("before"))
destination.wait_for_tries(1)
exporter.submit(small_call("waiting"))
child = os.fork()
go_on.set()
name = "parent" if child else "child"
exporter.submit(small_call(name))
assert exporter.flush(DEADLINE_S)
if child:
    assert os.waitpid(child, 0)[1] == 0
print(name, *destination.names, flush=True)
""")
    assert sorted(lines) == ["child gateway/child", "parent gateway/before gateway/waiting gateway/parent"]
