"""A gateway whose store is down: callers notice nothing, and afterwards each mirror is stored once.

With NIGHTLY the store, also a real MLflow server, is down for a minute at 20 calls a second, and latencies are compared
with those of the same gateway without the companion, side by side. The figures are printed.
"""

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from agent_gateway_client.demo._server import MlflowServer
from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.export.environment import exporter_from_environment
from tests.support.middleware import REQUEST, starlette_app
from tests.support.nightly import NIGHTLY, amount
from tests.support.otlp_receiver import Receiver
from tests.support.served import Served
from tests.support.server import DEADLINE_S, TRACE_ID
from tests.support.wire_samples import CHAT, SAMPLES

CALLS = amount(60, 1_200)
CALLS_PER_SECOND = 20


@pytest.fixture(autouse=True)
def quick() -> None:
    """Keep the exporter's pauses as in production here."""


class Store(Protocol):
    """A store that can be stopped and started again."""

    @property
    def url(self) -> str: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def parents(self) -> Counter[str]:
        """Return the ids of the callers' spans that have mirrors, with the number of mirrors."""


class ReceivingStore(Receiver):
    def parents(self) -> Counter[str]:
        return Counter(span.parent_span_id.hex() for span in self.spans if span.name.startswith("gateway/"))


class MlflowStore(MlflowServer):
    def __init__(self, directory: Path) -> None:
        uri = f"sqlite:///{directory / 'mlflow.db'}"
        super().__init__(directory, uri, app_name=None, port=None, env={})
        self._database = directory / "mlflow.db"

    def parents(self) -> Counter[str]:
        import sqlite3

        query = "SELECT parent_span_id FROM spans WHERE name LIKE 'gateway/%'"
        with closing(sqlite3.connect(self._database)) as connection:
            return Counter(parent for (parent,) in connection.execute(query))


@contextmanager
def running(kind: str, directory: Path) -> Iterator[Store]:
    store = MlflowStore(directory) if kind == "mlflow server" else ReceivingStore()
    store.start()
    try:
        yield store
    finally:
        store.stop()


@pytest.mark.parametrize("kind", ["otlp", "mlflow", *(["mlflow server"] if NIGHTLY else [])])
def test_the_store_is_away(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """Each call is served as fast as without the companion; afterwards each has its one mirror."""
    monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", "otlp" if kind == "otlp" else "mlflow")
    with ExitStack() as stack:
        store = stack.enter_context(running(kind, tmp_path))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", store.url)
        exporter = exporter_from_environment()
        plain, mirrored = starlette_app(SAMPLES["chat"]), starlette_app(SAMPLES["chat"])
        mirrored.add_middleware(GatewayTracingMiddleware, exporter=exporter)
        clients = [
            stack.enter_context(httpx.Client(base_url=stack.enter_context(Served(app)), timeout=DEADLINE_S))
            for app in (plain, mirrored)
        ]

        def call(client: httpx.Client, span_id: int) -> float:
            began = time.perf_counter()
            headers = {"traceparent": f"00-{TRACE_ID:032x}-{span_id:016x}-01"}
            assert client.post(CHAT, json=REQUEST, headers=headers).content == SAMPLES["chat"].body
            return time.perf_counter() - began

        for client in clients:
            call(client, CALLS + 1)
        assert exporter.flush(DEADLINE_S)
        store.stop()
        took: list[list[float]] = [[], []]
        began = time.monotonic()
        for number in range(1, CALLS + 1):
            # Alternate which is first.
            for which in (0, 1) if number % 2 else (1, 0):
                took[which].append(call(clients[which], number))
            if NIGHTLY:
                time.sleep(max(0.0, began + number / CALLS_PER_SECOND - time.monotonic()))
        away_s = time.monotonic() - began
        assert store.parents().total() <= 1
        store.start()
        assert exporter.flush(DEADLINE_S)
        assert exporter.dropped == 0
        assert store.parents() == Counter([f"{number:016x}" for number in range(1, CALLS + 2)])
    without, with_it = map(statistics.median, took)
    low, high = statistics.quantiles(took[0], n=10)[0], statistics.quantiles(took[0], n=10)[-1]
    with capsys.disabled():
        print(
            f"\n{kind}: away for {away_s:.0f} s, {CALLS} calls; median {without * 1e3:.2f} ms without the companion "
            f"(10 to 90 %: {low * 1e3:.2f} to {high * 1e3:.2f} ms), {with_it * 1e3:.2f} ms with it"
        )
    if NIGHTLY:
        assert with_it < high, "within what calls without the companion take"
