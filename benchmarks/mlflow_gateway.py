"""A real MLflow gateway with and without the companion: throughput, stored bytes, and delay until readable.

An MLflow server stores traces behind its answers, and falls further and further behind when it is called as fast as it
answers: its rate of answers over a few seconds is not a rate that it can sustain. So the benchmark takes the processor
time of its calls until it is idle, and throughput is the number of calls per second of processor time; a server is one
process, and Python runs one of its threads at a time. The other servers are stopped while one is called.
"""

import json
import os
import random
import secrets
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import httpx
import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Span
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags

from agent_gateway_client.demo.gateway import DemoGateway
from benchmarks.load import closed_loop, processor_seconds
from benchmarks.measure import estimate, paired, percentile
from benchmarks.report import Report
from benchmarks.stores import no_postgres, postgres, waited

GATEWAY = f"MLflow {mlflow.__version__} gateway"
COMPANION = "with the companion"
PLAIN = "plain MLflow, stores no mirrors"
OWN = "MLflow with its own mirror"
POSTGRES = "with the companion, PostgreSQL"
STORES = {COMPANION: "SQLite", POSTGRES: "PostgreSQL"}
CLIENTS = (1, 8, 32)
SECONDS = 1.0
ROUNDS = 2
BUSY_SHARE = 0.1
QUIET_SECONDS = 5.5
"""Longer than the 5 s after which MLflow sends a batch."""
LATENCY_CALLS = 20
TRACES = 50
"""Callers' traces at each gateway, used in turns."""


def run(report: Report) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-gateway-")))
        specs = {
            COMPANION: DemoGateway(directory=directory / "companion"),
            PLAIN: DemoGateway(None, directory=directory / "plain"),
            OWN: DemoGateway(None, directory=directory / "own", env={"MLFLOW_USE_BATCH_SPAN_PROCESSOR": "false"}),
        }
        if reason := no_postgres():
            report.note(f"No PostgreSQL: {reason}.")
        else:
            uri = stack.enter_context(postgres())
            specs[POSTGRES] = DemoGateway(backend_store_uri=uri, directory=directory / "postgres")
        with ThreadPoolExecutor() as pool:
            started = pool.map(DemoGateway.start, specs.values())
            gateways = dict(zip(specs, map(stack.enter_context, started), strict=True))
        throughput(report, {name: gateways[name] for name in (COMPANION, PLAIN, OWN)})
        for size, text in ((1024, "1 KB"), (1024 * 1024, "1 MB")):
            ours = stored(report, gateways[COMPANION], directory / "companion" / "mlflow.db", size, COMPANION, text)
            own = stored(report, gateways[OWN], directory / "own" / "mlflow.db", size, OWN, text)
            report.mark(
                f"{GATEWAY}, stored per mirrored call, {text} of payload, in terms of its own mirror", ours / own, 1
            )
        stores = {store: gateways[name] for name, store in STORES.items() if name in gateways}
        with ThreadPoolExecutor() as pool:
            for store, found in zip(stores, pool.map(readable, stores.values()), strict=True):
                _report_readable(report, store, found)


def throughput(report: Report, gateways: dict[str, DemoGateway]) -> None:
    """The cost of calls in a closed loop, and the rate of answers."""
    # MLflow's own mirror treats a trace as its own, so its callers' traces are not started before.
    traces = {
        name: [] if name == OWN else [begun(gateway) for _ in range(TRACES)] for name, gateway in gateways.items()
    }
    _round(gateways, traces, 8)
    for clients in CLIENTS:
        rounds = [_round(gateways, traces, clients) for _ in range(ROUNDS)]
        in_loop = {name: np.array([found[name][0] for found in rounds]) for name in gateways}
        sustained = {name: np.array([found[name][1] for found in rounds]) for name in gateways}
        group = f"{GATEWAY}, {clients} client{'s' if clients > 1 else ''}"
        report.compared(group, sustained, PLAIN, "calls/s of processor time")
        report.compared(f"{group}, answered while it lags behind", in_loop, PLAIN, "calls/s")
        share, _, _ = estimate(paired(COMPANION, PLAIN), sustained)
        report.mark(f"{group}, in terms of plain MLflow", share, 0.98, at_least=True)
        share, _, _ = estimate(paired(COMPANION, OWN), sustained)
        report.mark(f"{group}, in terms of MLflow with its own mirror", share, 1.7, at_least=True)


def begun(gateway: DemoGateway) -> str:
    """Start a caller's trace in a gateway's MLflow, with a first span; returns its id, 32 hexadecimal digits."""
    trace_id = secrets.token_hex(16)
    first, root = (SpanContext(int(trace_id, 16), secrets.randbits(64), False, TraceFlags(1)) for _ in range(2))
    now = time.time_ns()
    attributes = {"mlflow.traceRequestId": json.dumps(f"tr-{trace_id}")}
    span = ReadableSpan("step", first, root, attributes=attributes, start_time=now, end_time=now + 1)
    TracingClient(gateway.tracking_uri).store.log_spans("0", [Span(span)])
    return trace_id


def _round(
    gateways: dict[str, DemoGateway], traces: dict[str, list[str]], clients: int
) -> dict[str, tuple[float, float]]:
    """Call each gateway in turn; returns the answered calls per second, and per second of processor time."""
    groups = {name: gateway.pid or 0 for name, gateway in gateways.items()}
    before = {name: processor_seconds(group) for name, group in groups.items()}
    order = random.sample(list(groups), len(groups))
    answered = {name: _alone(gateways[name], traces[name], clients, groups) for name in order}
    _wait_until_quiet(groups)
    found = {}
    for name, group in groups.items():
        calls, seconds = answered[name]
        found[name] = calls / seconds, calls / (processor_seconds(group) - before[name])
    return found


def _alone(gateway: DemoGateway, traces: list[str], clients: int, groups: dict[str, int]) -> tuple[int, float]:
    """Call a gateway while the processes of all others are stopped; see :func:`closed_loop`."""
    others = [group for group in groups.values() if group != gateway.pid]
    for group in others:
        os.killpg(group, signal.SIGSTOP)
    try:
        return closed_loop(gateway.openai_base_url, clients, SECONDS, traces=traces)
    finally:
        for group in others:
            os.killpg(group, signal.SIGCONT)


def _wait_until_quiet(groups: dict[str, int]) -> None:
    step = 0.25
    quiet_since, taken = time.monotonic(), sum(map(processor_seconds, groups.values()))
    while time.monotonic() - quiet_since < QUIET_SECONDS:
        time.sleep(step)
        before, taken = taken, sum(map(processor_seconds, groups.values()))
        if taken - before > BUSY_SHARE * step:
            quiet_since = time.monotonic()


def stored(report: Report, gateway: DemoGateway, database: Path, size: int, name: str, text: str) -> int:
    """Return the bytes of the ``spans`` rows that one call adds to its caller's trace."""
    trace_id, span_id = begun(gateway) if name == COMPANION else secrets.token_hex(16), secrets.token_hex(8)
    request = {"model": "chat", "messages": [{"role": "user", "content": "x" * size}]}
    headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    url = f"{gateway.openai_base_url}/chat/completions"
    httpx.post(url, json=request, headers=headers, timeout=60, trust_env=False).raise_for_status()
    waited(30, partial(_bytes_of, database, trace_id))
    found = _bytes_of(database, trace_id)
    assert found is not None, f"{name}: no mirror"
    count, size_stored = found
    report.add(
        f"bytes stored per mirrored call, MLflow {mlflow.__version__}",
        f"{name}, {text} of payload, {count} spans",
        size_stored,
        "B",
    )
    return size_stored


def _bytes_of(database: Path, trace_id: str) -> tuple[int, int] | None:
    with _rows(database) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(spans)")]
        size = " + ".join(f"coalesce(length(cast({column} AS BLOB)), 0)" for column in columns)
        query = f"SELECT count(*), sum({size}) FROM spans WHERE trace_id = ? AND name != 'step'"
        count, found = connection.execute(query, (f"tr-{trace_id}",)).fetchone()
    return (count, found) if count >= 2 else None


@contextmanager
def _rows(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        yield connection


def readable(gateway: DemoGateway) -> list[float]:
    """Return the seconds from the end of each call until MLflow's API returns its mirror in the caller's trace."""
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    client = MlflowClient(gateway.tracking_uri)
    found = []
    with httpx.Client(base_url=gateway.openai_base_url, timeout=60, trust_env=False) as http:
        for _ in range(LATENCY_CALLS):
            trace_id = begun(gateway)
            headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
            request = {"model": "chat", "messages": [{"role": "user", "content": "one"}]}
            http.post("/chat/completions", json=request, headers=headers).raise_for_status()
            seconds = waited(30, partial(_has_mirror, client, f"tr-{trace_id}"))
            found.append(30.0 if seconds is None else seconds)
    return found


def _report_readable(report: Report, store: str, found: list[float]) -> None:
    group = f"mirror readable after the call's end, MLflow {mlflow.__version__}, {store}"
    report.add(group, "median", percentile(found, 50), "s")
    report.add(group, "95th percentile", percentile(found, 95), "s")
    report.mark(f"{GATEWAY}, mirror readable, 95th percentile, {store}", percentile(found, 95), 1, "s")


def _has_mirror(client: MlflowClient, trace_id: str) -> bool:
    try:
        spans = client.get_trace(trace_id).data.spans
    except MlflowException:
        return False
    return sum(span.name.startswith(("gateway/", "provider/")) for span in spans) == 2
