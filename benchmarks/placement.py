"""What look-ups of the callers' traces and checks of their totals cost, in terms of the writes of mirrors."""

import logging
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import Span
from mlflow.tracing.client import TracingClient

from agent_gateway_client.demo._server import MlflowServer
from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.export.mlflow import MlflowDestination, Store
from agent_gateway_client.server.export.mlflow_server import HttpStore
from agent_gateway_client.server.export.mlflow_store import SqlStore
from agent_gateway_client.server.export.totals import FIRST_LOOK_SECONDS, SECOND_LOOK_SECONDS, TraceTotals
from agent_gateway_client.server.mirror import Convention, mirror
from benchmarks.exporter import call_in, new_trace_id, start_trace
from benchmarks.load import processor_seconds
from benchmarks.report import Report
from benchmarks.stores import no_postgres, postgres

T = TypeVar("T")

TRACES = 200
CALLS_PER_TRACE = 5
REQUESTS = 24
"""Requests of a kind over HTTP. Linux counts a process's time in hundredths of a second."""
WAITING = 10_000
SHARE = 0.05
WAITING_MS = 50.0


class Metered(Store):
    """A store that adds up the seconds of its look-ups, writes and checks of totals."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.known_seconds = store.known_seconds
        self.batches_per_look_up = store.batches_per_look_up
        self.look_ups = self.writes = self.totals = 0.0
        self.looked_up = 0

    @property
    def description(self) -> str:
        return self._store.description

    def in_workspace(self, workspace: str | None) -> AbstractContextManager[object]:
        return self._store.in_workspace(workspace)

    def workspaces(self) -> Any:
        return self._store.workspaces()

    def experiments_of(self, trace_ids: Collection[str]) -> Mapping[str, str]:
        found, seconds = _timed(lambda: self._store.experiments_of(trace_ids))
        self.look_ups += seconds
        self.looked_up += len(trace_ids)
        return found

    def log_spans(self, experiment_id: str, spans: list[Any]) -> object:
        found, seconds = _timed(lambda: self._store.log_spans(experiment_id, spans))
        self.writes += seconds
        return found

    def totals_of(
        self, trace_ids: Collection[str], experiment_ids: Collection[str], known: Mapping[str, TraceTotals]
    ) -> Mapping[str, TraceTotals]:
        found, seconds = _timed(lambda: self._store.totals_of(trace_ids, experiment_ids, known))
        self.totals += seconds
        return found

    def set_metadata(self, trace_id: str, metadata: Mapping[str, str]) -> None:
        _, seconds = _timed(lambda: self._store.set_metadata(trace_id, metadata))
        self.totals += seconds


def run(report: Report) -> None:
    logging.disable(logging.INFO)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-gateway-")))
        store = TracingClient(f"sqlite:///{directory / 'mlflow.db'}").store
        in_process(report, "SQLite", store)
        waiting(report, "SQLite", SqlStore(lambda: store))
        if reason := no_postgres():
            report.note(f"No PostgreSQL: {reason}.")
        else:
            in_process(report, "PostgreSQL", TracingClient(stack.enter_context(postgres())).store)
        uri = f"sqlite:///{directory / 'server.db'}"
        server = MlflowServer(directory, uri, app_name=None, port=None, env={})
        stack.callback(server.close)
        server.start()
        over_http(report, server)
        waiting(report, "HTTP", HttpStore(TracingClient(server.url).store))


def in_process(report: Report, name: str, store: Any) -> None:
    """Store calls of ended traces through the exporter, and check the totals as often as it does."""
    metered = Metered(SqlStore(lambda: store))
    exporter = Exporter(MlflowDestination(metered))
    _store_calls(exporter, store, 1)
    # The first checks import what they need.
    assert exporter.flush(60)
    metered.look_ups = metered.writes = metered.totals = 0.0
    _store_calls(exporter, store, TRACES)
    time.sleep(FIRST_LOOK_SECONDS + SECOND_LOOK_SECONDS + 2)
    assert exporter.flush(60)
    group = f"cost of mirrored calls, {name}"
    for case, seconds in (("look-ups", metered.look_ups), ("totals", metered.totals)):
        report.add(group, case, 1e3 * seconds / (TRACES * CALLS_PER_TRACE), "ms", ratio=seconds / metered.writes)
        report.mark(f"{case.capitalize()} in terms of the writes, {name}", seconds / metered.writes, SHARE)
    report.add(group, "writes", 1e3 * metered.writes / (TRACES * CALLS_PER_TRACE), "ms", ratio=1.0)
    exporter.shutdown()


def over_http(report: Report, server: MlflowServer) -> None:
    """Look-ups and writes over HTTP, in processor time of the server."""
    client = TracingClient(server.url).store
    store = HttpStore(client)
    destination = MlflowDestination(store)
    traces = [start_trace(client) for _ in range(destination.max_located)]
    ids = [mlflow_trace_id(trace_id) for trace_id in traces]
    calls = [call_in(trace_id) for trace_id in traces[: destination.max_batch]]
    spans = [Span(span) for call in calls for span in mirror(call, Convention.MLFLOW)]
    shared = destination.max_located // CALLS_PER_TRACE
    costs = {
        f"look-up of {shared} traces": lambda: store.experiments_of(ids[:shared]),
        "look-up of 1 trace": lambda: store.experiments_of(ids[:1]),
        f"look-up of {destination.max_batch} traces": lambda: store.experiments_of(ids[: destination.max_batch]),
        f"look-up of {destination.max_located} traces": lambda: store.experiments_of(ids[: destination.max_located]),
        f"write of {destination.max_batch} calls": lambda: store.log_spans("0", spans),
    }
    seconds = {case: _of_server(server, request) for case, request in costs.items()}
    together, *_, write = seconds.values()
    for case, cost in seconds.items():
        report.add("requests to an MLflow server, processor time", case, 1e3 * cost, "ms", ratio=cost / write)
    share = together / store.batches_per_look_up / write
    report.mark(f"Look-ups over HTTP in terms of the writes, {CALLS_PER_TRACE} calls per trace", share, SHARE)


def waiting(report: Report, name: str, store: Store) -> None:
    """Look up the traces of a full queue of calls, of which none exists.

    The figure is the time of a look-up of all, divided by the pause that it causes.
    """
    metered = Metered(store)
    exporter = Exporter(MlflowDestination(metered))
    for _ in range(WAITING):
        exporter.submit(call_in(new_trace_id()))
    while metered.looked_up < WAITING:
        time.sleep(0.1)
    due = max(trace.due for trace in exporter._waiting._traces.values())
    found = metered.look_ups / (due - time.monotonic())
    assert exporter.counts().waiting == WAITING
    exporter.shutdown(0.1)
    group = f"{WAITING:,} calls wait for their traces, {name}"
    report.add(group, "look-ups of all", metered.look_ups, "s")
    report.add(group, "pause after it", metered.look_ups / found, "s")
    report.mark(f"Look-ups while {WAITING:,} calls wait, {name}", 1e3 * found, WAITING_MS, "ms/s")


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


def _of_server(server: MlflowServer, request: Callable[[], object]) -> float:
    """Return the server's processor time per request, in seconds."""
    assert server.pid
    request()
    before = processor_seconds(server.pid)
    for _ in range(REQUESTS):
        request()
    return (processor_seconds(server.pid) - before) / REQUESTS


def _store_calls(exporter: Exporter, store: Any, traces: int) -> None:
    calls = [
        call_in(trace_id)
        for trace_id in [start_trace(store, ended=True) for _ in range(traces)]
        for _ in range(CALLS_PER_TRACE)
    ]
    for call in calls:
        exporter.submit(call)
    while exporter.counts().waiting:
        time.sleep(0.05)
