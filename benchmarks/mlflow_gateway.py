"""A real MLflow gateway with the companion and without: throughput, what is stored, and when it can be read."""

import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from agent_gateway_client.demo.gateway import DemoGateway
from benchmarks.load import calls_per_second, processor_seconds
from benchmarks.measure import estimate, interleave, median, percentile, ratio
from benchmarks.report import Report
from benchmarks.stores import no_postgres, postgres, waited

COMPANION = "with the companion"
PLAIN = "plain MLflow, stores no mirrors"
OWN = "MLflow with its own mirror"
POSTGRES = "with the companion, PostgreSQL"
CLIENTS = (1, 8, 32)
SECONDS = 2.0
ROUNDS_SECONDS = 26.0
LATENCY_CALLS = 30


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
            report.mark(f"Stored per mirrored call, {text} of payload, in terms of MLflow's own mirror", ours / own, 1)
        for name, store in ((COMPANION, "SQLite"), (POSTGRES, "PostgreSQL")):
            if name in gateways:
                readable(report, gateways[name], store)


def throughput(report: Report, gateways: dict[str, DemoGateway]) -> None:
    """Calls per second in a closed loop, and the server's processor time for each of them."""
    for clients in CLIENTS:
        group = f"MLflow gateway, {clients} client{'s' if clients > 1 else ''}"
        costs: dict[str, list[float]] = {name: [] for name in gateways}
        cases = {name: partial(_segment, gateway, clients, costs[name]) for name, gateway in gateways.items()}
        samples = interleave(cases, ROUNDS_SECONDS, warm_up=1, least=4)
        report.compared(group, samples, {name: median(name) for name in samples}, PLAIN, "calls/s")
        taken = {name: np.array(cost[1:]) for name, cost in costs.items()}
        cost_of = {name: median(name) for name in taken}
        report.compared(f"{group}, processor time of the server", taken, cost_of, PLAIN, "ms/call")
        share, _, _ = estimate(ratio(median(COMPANION), median(PLAIN)), samples)
        report.mark(f"{group}, in terms of plain MLflow", share, 0.97, at_least=True)
        share, _, _ = estimate(ratio(median(COMPANION), median(OWN)), samples)
        report.mark(f"{group}, in terms of MLflow with its own mirror", share, 1.5, at_least=True)


def _segment(gateway: DemoGateway, clients: int, costs: list[float]) -> float:
    assert gateway.pid is not None
    before = processor_seconds(gateway.pid)
    found = calls_per_second(gateway.openai_base_url, clients, SECONDS)
    # What is stored off the request path is stored now, and not in the next one's time.
    time.sleep(1.0)
    costs.append(1e3 * (processor_seconds(gateway.pid) - before) / (found * SECONDS))
    return found


def stored(report: Report, gateway: DemoGateway, database: Path, size: int, name: str, text: str) -> int:
    """Return the bytes of the ``spans`` rows that one call adds to its caller's trace."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    request = {"model": "chat", "messages": [{"role": "user", "content": "x" * size}]}
    headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    url = f"{gateway.openai_base_url}/chat/completions"
    httpx.post(url, json=request, headers=headers, timeout=60, trust_env=False).raise_for_status()
    waited(30, partial(_bytes_of, database, trace_id))
    found = _bytes_of(database, trace_id)
    assert found is not None, f"{name}: no mirror"
    count, size_stored = found
    report.add("bytes stored per mirrored call", f"{name}, {text} of payload, {count} spans", size_stored, "B")
    return size_stored


def _bytes_of(database: Path, trace_id: str) -> tuple[int, int] | None:
    with _rows(database) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(spans)")]
        size = " + ".join(f"coalesce(length(cast({column} AS BLOB)), 0)" for column in columns)
        query = f"SELECT count(*), sum({size}) FROM spans WHERE trace_id = ?"
        count, found = connection.execute(query, (f"tr-{trace_id}",)).fetchone()
    return (count, found) if count >= 2 else None


@contextmanager
def _rows(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        yield connection


def readable(report: Report, gateway: DemoGateway, store: str) -> None:
    """Seconds from the end of a call until MLflow's API shows its mirror in the caller's trace."""
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    client = MlflowClient(gateway.tracking_uri)
    found = []
    with httpx.Client(base_url=gateway.openai_base_url, timeout=60, trust_env=False) as http:
        for _ in range(LATENCY_CALLS):
            trace_id = secrets.token_hex(16)
            headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
            request = {"model": "chat", "messages": [{"role": "user", "content": "one"}]}
            http.post("/chat/completions", json=request, headers=headers).raise_for_status()
            seconds = waited(30, partial(_has_mirror, client, f"tr-{trace_id}"))
            found.append(30.0 if seconds is None else seconds)
    group = f"mirror readable after the call's end, {store}"
    report.add(group, "median", percentile(found, 50), "s")
    report.add(group, "95th percentile", percentile(found, 95), "s")
    report.mark(f"Mirror readable, 95th percentile, {store}", percentile(found, 95), 1, "s")


def _has_mirror(client: MlflowClient, trace_id: str) -> bool:
    try:
        spans = client.get_trace(trace_id).data.spans
    except MlflowException:
        return False
    return sum(span.name.startswith(("gateway/", "provider/")) for span in spans) == 2
