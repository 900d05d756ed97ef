"""MLflow's other writers come first: mirrors are written when the store has free connections."""

import threading
import time
from types import SimpleNamespace

import pytest
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.pool import NullPool, QueuePool

from agent_gateway_client.server.export import Exporter, mlflow_store, sender
from agent_gateway_client.server.export.mlflow import MlflowDestination
from agent_gateway_client.server.export.mlflow_store import SqlStore
from tests.support.server import DEADLINE_S, MemoryDestination, full_call


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released each time a write finds all connections in use."""
    looked = threading.Semaphore(0)

    class Clock:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(seconds: float) -> None:
            looked.release()
            time.sleep(seconds)

    monkeypatch.setattr(mlflow_store, "time", Clock)
    return looked


def test_a_mirror_waits_for_a_free_connection(
    store: SqlAlchemyStore, looked: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
):
    """While all of the pool's connections are in use, nothing is written; once one is free, the mirror is."""
    monkeypatch.setattr(mlflow_store, "_GIVE_WAY_SECONDS", DEADLINE_S)
    exporter = Exporter(MlflowDestination(SqlStore(lambda: store)))
    in_use = [store.engine.connect() for _ in range(store.engine.pool.size())]  # type: ignore[attr-defined]
    exporter.submit(full_call())
    assert looked.acquire(timeout=DEADLINE_S)
    assert looked.acquire(timeout=DEADLINE_S)
    assert exporter.counts().sent == 0
    in_use.pop().close()
    assert exporter.flush(DEADLINE_S)
    assert exporter.counts().sent == 1
    for connection in in_use:
        connection.close()


def test_a_mirror_does_not_wait_for_ever(
    store: SqlAlchemyStore, looked: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
):
    """If connections stay in use, the mirror is written after a timeout."""
    monkeypatch.setattr(mlflow_store, "_GIVE_WAY_SECONDS", 0.1)
    exporter = Exporter(MlflowDestination(SqlStore(lambda: store)))
    in_use = [store.engine.connect() for _ in range(store.engine.pool.size())]  # type: ignore[attr-defined]
    exporter.submit(full_call())
    assert exporter.flush(DEADLINE_S)
    assert looked.acquire(timeout=0.0)
    for connection in in_use:
        connection.close()


@pytest.mark.parametrize("pool", [None, NullPool(lambda: None), QueuePool(lambda: None, pool_size=0)])  # type: ignore[arg-type]
def test_a_store_without_a_bounded_pool(pool: object, looked: threading.Semaphore):
    """If SQLAlchemy does not count or limit connections, nothing waits."""
    mlflow_store._give_way(SimpleNamespace(engine=SimpleNamespace(pool=pool)))
    mlflow_store._give_way(object())
    assert not looked.acquire(timeout=0.0)


def test_a_slow_destination_gets_a_rest(monkeypatch: pytest.MonkeyPatch):
    """After a slow batch the exporter pauses for the same time, up to a limit."""
    rests: list[float] = []
    rested = threading.Event()

    class Slow(MemoryDestination):
        def send(self, *arguments: object) -> None:
            clock.now += 2.0 if len(self.batches) < 1 else 60.0
            super().send(*arguments)  # type: ignore[arg-type]

    class Clock:
        now = 0.0
        time_ns = staticmethod(time.time_ns)

        def monotonic(self) -> float:
            return time.monotonic() + self.now

    clock = Clock()
    monkeypatch.setattr(sender, "time", clock)
    exporter = Exporter(Slow())

    def wait_for_next_batch(begun: float, *, at_least: float = 0.0) -> None:
        if at_least > 1.0:
            rests.append(at_least)
            rested.set()

    monkeypatch.setattr(exporter._sender, "wait_for_next_batch", wait_for_next_batch)
    for _ in range(2):
        rested.clear()
        exporter.submit(full_call())
        assert rested.wait(DEADLINE_S)
    assert [round(rest) for rest in rests] == [2, sender.MAX_REST_SECONDS]
