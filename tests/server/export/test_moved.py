"""MLflow may move private names: each is removed in turn, and mirrors are still sent or a warning says what to do."""

import sys

import pytest
from mlflow.store.tracking.dbmodels import models
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from agent_gateway_client.server import export
from agent_gateway_client.server.export import Exporter, mlflow_columns
from agent_gateway_client.server.export.environment import store_of
from agent_gateway_client.server.export.mlflow import MlflowDestination
from agent_gateway_client.server.export.mlflow_store import SqlStore, server_store
from tests.support.server import DEADLINE_S, full_call


@pytest.mark.parametrize("name", ["_trace_query", "ManagedSessionMaker", "SqlTraceInfo", "mlflow_columns"])
def test_the_columns_of_traces(
    name: str, store: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
):
    """Traces are looked up with MLflow's public method, and one warning has the version."""
    stand_in: object = store
    if name == "mlflow_columns":
        # Like an import error of something that it needs.
        monkeypatch.setitem(sys.modules, mlflow_columns.__name__, None)
        monkeypatch.delattr(export, name)
    elif name == "SqlTraceInfo":
        monkeypatch.delattr(models, name)
    else:

        class Moved:
            def __getattr__(self, attribute: str) -> object:
                if attribute == name:
                    raise AttributeError(name)
                return getattr(store, attribute)

        stand_in = Moved()
    exporter = Exporter(MlflowDestination(SqlStore(lambda: stand_in)))
    for _ in range(2):
        exporter.submit(full_call())
        assert exporter.flush(DEADLINE_S)
    assert (exporter.counts().sent, exporter.dropped) == (2, 0)
    assert ["has changed its tables of traces" in message for message in logged.messages] == [True]


def test_the_servers_tracking_store(monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture):
    """If the store cannot be found inside a server, mirrors wait, and the log has the version and the remedy."""
    monkeypatch.setitem(sys.modules, "mlflow.server.handlers", None)
    exporter = Exporter(MlflowDestination(SqlStore(server_store)))
    exporter.submit(full_call())
    assert not exporter.flush(0.5)
    (message,) = logged.messages
    assert "has moved its server's tracking store; upgrade agent-gateway-client" in message
    exporter.shutdown(0.0)


def test_the_clients_requests(
    store: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
):
    """If MLflow's client sends requests in another way, its own methods are used, and one warning says so."""
    monkeypatch.setitem(sys.modules, "mlflow.utils.rest_utils", None)
    monkeypatch.delitem(sys.modules, "agent_gateway_client.server.export.mlflow_server", raising=False)
    assert isinstance(store_of(store), SqlStore)
    assert ["has changed how it sends requests" in message for message in logged.messages] == [True]
