"""Write permissions, as MLflow's basic-auth has them at the time of writing; tests/e2e/test_permissions.py runs it."""

import contextlib
import logging
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE

from agent_gateway_client.server.export import Unavailable
from agent_gateway_client.server.export.counts import Reason
from agent_gateway_client.server.export.delivery import deliver
from agent_gateway_client.server.export.mlflow import MlflowDestination
from agent_gateway_client.server.export.waiting import WaitingCalls
from agent_gateway_client.server.mlflow_gateway import _app, _permissions
from agent_gateway_client.w3c import TraceContext
from tests.support.server import full_call

pytest.importorskip("flask_wtf", reason="mlflow[auth] is not in this environment's constraints file")
auth = pytest.importorskip("mlflow.server.auth")

ALLOWED = {("alice", "1"), ("bob", "2")}


class OneStore:
    """A store with the trace 7 in the experiment 1, and the trace 8 in the experiment 2."""

    known_seconds = 0.0
    batches_per_look_up = 1

    def __init__(self) -> None:
        self.written: list[tuple[str, int]] = []

    def in_workspace(self, workspace: str | None) -> Any:
        return contextlib.nullcontext()

    def experiments_of(self, trace_ids: Any) -> dict[str, str]:
        return {one: "1" if one.endswith("7") else "2" for one in trace_ids}

    def log_spans(self, experiment_id: str, spans: list[Any]) -> None:
        self.written += [(experiment_id, len(spans))]


def test_only_who_may_write_leaves_a_mirror():
    """A caller's mirrors go to experiments that the caller may write to; those without a caller go nowhere."""
    store, waiting = OneStore(), WaitingCalls(100, 10**6)
    destination = MlflowDestination(store, lambda user, experiment_id: (user, experiment_id) in ALLOWED)  # type: ignore[arg-type]
    for user in ("alice", "bob", None):
        for trace_id in (7, 8):
            call = full_call(parent=TraceContext(trace_id, 1, 1))
            call.user = user
            waiting.add(call, 0.0)
    outcome = deliver(waiting.take(1.0, 100), destination)
    assert [(one.call.user, one.call.parent.trace_id) for one in outcome.sent] == [("alice", 7), ("bob", 8)]
    assert [reason for _, reason in outcome.dropped] == [Reason.NOT_ALLOWED] * 4
    assert {experiment_id for experiment_id, _ in store.written} == {"1", "2"}
    assert not outcome.is_away


@pytest.mark.parametrize("gone", ["_find_fastapi_validator", "store"])
def test_mlflow_asks_in_another_way(
    gone: str, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture, guards_hold: None
):
    """If MLflow cannot be asked, nobody may write, and one warning says so."""
    monkeypatch.delattr(auth, gone)
    assert not _permissions.may_write("alice", "1")
    assert not _permissions.may_write("alice", "1")
    (warning,) = [one for one in logged.records if one.levelno == logging.WARNING]
    assert "AGENT_GATEWAY_MAY_JOIN" in warning.getMessage()


def test_a_user_who_is_gone(monkeypatch: pytest.MonkeyPatch):
    """A user who has been deleted may not write."""

    class Users:
        def get_user(self, username: str) -> Any:
            raise MlflowException("no such user", RESOURCE_DOES_NOT_EXIST)

    monkeypatch.setattr(auth, "store", Users())
    assert not _permissions.may_write("alice", "1")


def test_users_that_cannot_be_looked_up_now(monkeypatch: pytest.MonkeyPatch):
    """Mirrors wait while MLflow's users cannot be read."""

    class Users:
        def get_user(self, username: str) -> Any:
            raise MlflowException("the database is locked", TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(auth, "store", Users())
    with pytest.raises(Unavailable):
        _permissions.may_write("alice", "1")


@pytest.mark.parametrize(
    ("variables", "asks"),
    [
        ({}, False),
        ({"AGENT_GATEWAY_MLFLOW_APP": "basic-auth"}, True),
        ({"AGENT_GATEWAY_MLFLOW_APP": "basic-auth", "AGENT_GATEWAY_MAY_JOIN": "os.path:exists"}, False),
    ],
)
def test_when_mlflow_is_asked(variables: dict[str, str], asks: bool, monkeypatch: pytest.MonkeyPatch):
    """MLflow is asked if it has users, unless the operator has configured who may join."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (_app._own_store()._may_write is not None) is asks
