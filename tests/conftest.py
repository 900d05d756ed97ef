"""Fixtures and environment variables for all tests."""

import functools
import gc
import os
import shlex
import ssl
import sys
import time
import warnings
from collections.abc import Generator, Iterator
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import pytest

from tests.support import mlflow_database, warm_python
from tests.support.tables import mark_cells, pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

# Read when MLflow and LiteLLM are imported, here and in the servers that tests start: no telemetry is sent.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

# Read when this package is imported, here and in the programs that tests start: errors that a guard would hide fail.
os.environ["AGENT_GATEWAY_RAISE_INTERNAL_ERRORS"] = "1"

# Every client of httpx and openai reads all CA certificates, which takes 30 ms. Clients may share a context.
ssl.create_default_context = functools.cache(ssl.create_default_context)

pytest.register_assert_rewrite("tests.support.e2e")

E2E = Path(__file__).parent / "e2e"

TOGETHER = {
    **dict.fromkeys(["test_doctor_relay", "test_gateways", "test_relay"], "LiteLLM's own callback"),
    **dict.fromkeys(
        ["test_engine", "test_gateway_chain", "test_litellm_proxy", "test_litellm_proxy_edges", "test_refusals"],
        "LiteLLM Proxy",
    ),
}
"""Files of e2e/ that share servers which take long to start, and so run in one process of pytest."""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        # The tests name the real Python, as they do in the process that runs alone.
        sys.executable = config.workerinput["executable"]
        spawn.set_executable(sys.executable)
        return
    warm_python.start()
    if processes := getattr(config.option, "tx", None):
        # pytest's own processes start from it, too: each would import the same for ten seconds.
        config.option.tx = [f"popen//python={shlex.quote(warm_python.interpreter())}" for _ in processes]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["executable"] = sys.executable


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute the files of ``TOGETHER`` as if they were one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return TOGETHER.get(Path(file).stem, file) if Path(file).parent.name == E2E.name else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Let the servers of `DemoGateway` start faster, if any test uses one."""
    if server := sys.modules.get("agent_gateway_client.demo._server"):
        server.PYTHON = warm_python.interpreter()
        mlflow_database.provide_to(server.MlflowServer)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Keep the garbage collector from the million objects of imported frameworks: each look at them takes 0.6 s."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(E2E):
            item.add_marker(pytest.mark.e2e)
    mark_cells(items)


@pytest.fixture
def guards_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guards stop errors, as they do for users, in a test that provokes an error."""
    from agent_gateway_client import _guard

    monkeypatch.setattr(_guard, "reraises", False)


EXPORTER = "agent_gateway_client.server.export.exporter"


def exporters() -> set[Any]:
    """Return the exporters of this process."""
    module = sys.modules.get(EXPORTER)
    return set(module._exporters) if module else set()


PROCESS_WIDE = "agent_gateway_client.http._process_wide"


def handles() -> set[Any]:
    """Return the handles of process-wide hooks."""
    return set(sys.modules[PROCESS_WIDE]._patches.handles) if PROCESS_WIDE in sys.modules else set()


@pytest.fixture(autouse=True)
def _nothing_goes_on() -> Iterator[None]:
    """Clean up after each test: undo its hooks, and stop its exporters."""
    exporters_before, handles_before = exporters(), handles()
    yield
    for exporter in exporters() - exporters_before:
        # Its thread would look up totals of its traces again, in a store that no longer exists.
        exporter.destination.after_fork()
        # What still waits would be asked for until the process ends, and then for ten seconds more.
        exporter.shutdown(0.0)
        sys.modules[EXPORTER]._exporters.discard(exporter)
    deadline = time.monotonic() + 10
    while left := handles() - handles_before:
        # First: a round that takes long, for its garbage collection, may have been the last one.
        assert time.monotonic() < deadline, f"a framework's adapter is still on: {left}"
        for handle in left:
            if not handle.for_adapter:
                # instrument(), or trace_headers() beside OpenTelemetry's instrumentations: active until uninstrument().
                sys.modules[PROCESS_WIDE]._counts.pop(handle, None)
                sys.modules[PROCESS_WIDE]._patches.remove(handle)
        # A model call that has begun is followed to its end, which may be its garbage collection.
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def _litellm_leaves_clients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect them after each module about LiteLLM, before pytest attributes them to another module's test."""
    yield
    if "litellm" in str(request.path.relative_to(Path(__file__).parent)):
        _collect_litellms_clients()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    if "litellm" in sys.modules:
        _collect_litellms_clients()


def _collect_litellms_clients() -> None:
    """Collect clients that LiteLLM leaves open in its own event loops, without their warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5):  # As often as pytest does.
            gc.collect()
