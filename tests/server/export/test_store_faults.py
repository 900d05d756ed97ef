"""The exporter and real destinations with a failing store: nothing is lost, and nothing arrives twice."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.export import Exporter, mlflow_server
from agent_gateway_client.server.export.environment import exporter_from_environment
from agent_gateway_client.server.export.mlflow import MlflowDestination
from agent_gateway_client.server.export.mlflow_store import SqlStore
from tests.support.mlflow_database import database_in
from tests.support.otlp_receiver import Receiver, Trouble
from tests.support.server import DEADLINE_S, PARENT, begin_trace, submit

TROUBLES: list[list[Trouble]] = [[401], [429], [500, 503], ["garbage"], ["hang up"], ["silence"]]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture(params=["mlflow", "otlp"])
def exporter(request: pytest.FixtureRequest, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Exporter:
    """An exporter to MLflow's server, or to an OTLP endpoint, with short timeouts."""
    monkeypatch.setattr(mlflow_server, "TIMEOUT_SECONDS", 1)
    monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", request.param)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    return exporter_from_environment()


def names(receiver: Receiver) -> list[str]:
    return [span.name for span in receiver.spans]


@pytest.mark.parametrize("troubles", TROUBLES, ids=lambda troubles: "-".join(map(str, troubles)))
def test_a_store_in_trouble_is_tried_again(troubles: list[Trouble], receiver: Receiver, exporter: Exporter):
    """After an error, a broken connection or a timeout the mirrors wait, and arrive once."""
    receiver.troubles = list(troubles)
    with receiver:
        submit(exporter, "ab")
        assert exporter.flush(DEADLINE_S)
    # A call that seemed to be at fault is sent after the others.
    assert sorted(names(receiver)) == ["gateway/a", "gateway/b"]
    assert receiver.tries > len(troubles)
    assert exporter.dropped == 0


def test_a_store_that_is_down_at_the_start(receiver: Receiver, exporter: Exporter, logged: pytest.LogCaptureFixture):
    """A gateway that starts before its store loses nothing."""
    submit(exporter, "a")
    assert not exporter.flush(1)
    with receiver:
        submit(exporter, "b")
        assert exporter.flush(DEADLINE_S)
    assert names(receiver) == ["gateway/a", "gateway/b"]
    assert exporter.dropped == 0
    assert len(logged.messages) == 1, "one warning a minute"


def test_a_store_that_dies_and_comes_back(receiver: Receiver, exporter: Exporter):
    """Kept-alive connections no longer work; mirrors sent before are not sent again."""
    with receiver:
        submit(exporter, "a")
        assert exporter.flush(DEADLINE_S)
        receiver.stop()
        submit(exporter, "b")
        assert not exporter.flush(0.3)
        receiver.start()
        submit(exporter, "c")
        assert exporter.flush(DEADLINE_S)
    assert names(receiver) == ["gateway/a", "gateway/b", "gateway/c"]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_a_store_refuses_is_not_sent_for_ever(status: int, receiver: Receiver, exporter: Exporter):
    """A rejection of the spans themselves is final, whatever its body is: they are dropped and counted."""
    receiver.troubles = [status] * 5
    with receiver:
        submit(exporter, "a")
        assert exporter.flush(DEADLINE_S)
        submit(exporter, "b")
        assert exporter.flush(DEADLINE_S)
    assert names(receiver) == ["gateway/b"]
    assert exporter.dropped == 1


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(database_in(tmp_path_factory.mktemp("faults")).removeprefix("sqlite:///"))


@pytest.fixture
def store(database: Path) -> Iterator[Exporter]:
    """An exporter into MLflow's tables in SQLite, with a short timeout for a locked database."""
    mlflow_store = SqlAlchemyStore(f"sqlite:///{database}?timeout=0.05", "mlflow-artifacts:/")
    begin_trace(mlflow_store)
    yield Exporter(MlflowDestination(SqlStore(lambda: mlflow_store)))
    mlflow_store.engine.dispose()


def stored(database: Path, call: GatewayCall) -> int:
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT count(*) FROM spans WHERE span_id = ?"
        return int(connection.execute(query, [f"{call.span_id:016x}"]).fetchone()[0])


def test_a_locked_database(database: Path, store: Exporter):
    """Mirrors wait while another process writes for long."""
    call = GatewayCall(PARENT, endpoint="locked", start_time_ns=1, end_time_ns=2)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        store.submit(call)
        assert not store.flush(1)
        other.execute("COMMIT")
    assert store.flush(DEADLINE_S)
    assert stored(database, call) == 1
    assert store.dropped == 0


FULL_DISK = """
import resource, signal, sys
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from tests.support.server import DEADLINE_S, PARENT, begin_trace
from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.export.mlflow import MlflowDestination
from agent_gateway_client.server.export.mlflow_store import SqlStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = SqlAlchemyStore(f"sqlite:///{sys.argv[1]}", "mlflow-artifacts:/")
begin_trace(store)
exporter = Exporter(MlflowDestination(SqlStore(lambda: store)))
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
for number in range(50):
    exporter.submit(GatewayCall(PARENT, endpoint="full", start_time_ns=1, end_time_ns=2))
print("stored:", exporter.flush(2), "dropped:", exporter.dropped, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
print("stored:", exporter.flush(DEADLINE_S), "dropped:", exporter.dropped, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_full_disk(database: Path, store: Exporter):
    """Mirrors wait while nothing can be written, and all are stored once there is room again.

    The process may not make any file longer, which fails like a full disk.
    """
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL_DISK, str(database)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
    )
    assert done.stdout.splitlines() == ["stored: False dropped: 0", "stored: True dropped: 0"], done.stderr
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM spans WHERE name = 'gateway/full'").fetchone() == (50,)
