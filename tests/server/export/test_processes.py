"""The exporter when a process ends or forks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, threading
from tests.support.server import DEADLINE_S, MemoryDestination, small_call
from agent_gateway_client.server.export import Exporter

def say(*words):
    # In one piece, as two processes may write at the same time.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


def run(code: str) -> list[str]:
    """Run code in a new interpreter, and return its output lines."""
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
    """A process that ends normally sends its last calls first."""
    lines = run(f"""
destination = MemoryDestination(lambda names: say(*names))
Exporter(destination).submit(small_call("a"))
{way_out}
""")
    assert lines == ["gateway/a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork()")
def test_a_fork_sends_only_its_own_calls():
    """After a fork the child has an empty queue and sends its own calls; the parent sends those that waited before."""
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
say(name, *destination.names)
""")
    assert sorted(lines) == ["child gateway/child", "parent gateway/before gateway/waiting gateway/parent"]


SLOW_TO_MAKE = """
import multiprocessing, time
from agent_gateway_client.server import gateway_call, shared
go_on = threading.Event()
destination = MemoryDestination()

def slow(mlflow):
    go_on.wait(DEADLINE_S)
    return destination

shared.destination_from_environment = slow
HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

def call(name="a"):
    with gateway_call(HEADERS, endpoint=name):
        pass
"""


def test_no_thread_per_call_while_the_exporter_is_made():
    """Calls that end while the exporter is being made, which may take seconds, start only two threads in total."""
    lines = run(f"""{SLOW_TO_MAKE}
before = threading.active_count()
for _ in range(1_000):
    call()
print(threading.active_count() - before <= 2)
go_on.set()
assert shared.flush(DEADLINE_S)
print(len(destination.spans))
""")
    assert lines == ["True", "1000"]


def test_a_machine_without_threads_while_the_exporter_is_made():
    """If no thread can be started, calls are served; they wait for a thread."""
    lines = run(f"""{SLOW_TO_MAKE}
go_on.set()
start = threading.Thread.start

def none_left(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = none_left
for _ in range(100):
    call()
threading.Thread.start = start
call()
assert shared.flush(DEADLINE_S)
print(len(destination.spans))
""")
    assert lines == ["101"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork()")
def test_a_fork_while_the_exporter_is_made():
    """A child forked at that moment mirrors its own calls, and ends."""
    lines = run(f"""{SLOW_TO_MAKE}
call("parent")
while not shared._exporter.destination._is_being_made:
    time.sleep(0.01)
child = os.fork()
go_on.set()
if not child:
    call("child")
assert shared.flush(DEADLINE_S)
say(*destination.names)
if child:
    assert os.waitpid(child, 0)[1] == 0
""")
    assert sorted(lines) == ["gateway/child", "gateway/parent"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork()")
def test_a_pool_of_processes_while_the_exporter_is_made():
    """multiprocessing.Pool works and ends, whatever the exporter does at the fork."""
    lines = run(f"""{SLOW_TO_MAKE}
call("parent")
while not shared._exporter.destination._is_being_made:
    time.sleep(0.01)
with multiprocessing.get_context("fork").Pool(2) as pool:
    say(pool.map(abs, [-1, -2]))
go_on.set()
""")
    assert lines == ["[1, 2]"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork()")
def test_a_fork_while_modules_are_imported():
    """A child whose parent was importing MLflow cannot import it; it drops its mirrors, warns, works and ends."""
    lines = run(f"""{SLOW_TO_MAKE}
import logging, sys, types
logging.basicConfig(stream=sys.stdout, format="%(message)s")
call("parent")
while not shared._exporter.destination._is_being_made:
    time.sleep(0.01)
half = types.ModuleType("half_imported")
half.__spec__ = types.SimpleNamespace(_initializing=True)
sys.modules["half_imported"] = half
child = os.fork()
del sys.modules["half_imported"]
go_on.set()
if child:
    assert shared.flush(DEADLINE_S)
    assert os.waitpid(child, 0)[1] == 0
else:
    call("child")
    assert shared.flush(DEADLINE_S)
    say(shared._exporter.counts().dropped)
""")
    assert "before forking" in lines[0]
    assert lines[-1] == "{'misconfigured': 1}"


def test_a_stop_while_the_store_hangs():
    """A process whose store does not answer ends at one deadline for all its exporters."""
    lines = run("""
from agent_gateway_client.server.export import exporter
exporter.STOP_SECONDS = 0.5
hang = threading.Event()
for number in range(4):
    destination = MemoryDestination(lambda names: hang.wait(600))
    one = Exporter(destination)
    one.submit(small_call("in flight"))
    destination.wait_for_tries(1)
    one.submit(small_call("waiting"))
print("ends")
""")
    assert lines == ["ends"]
