"""A gateway other than MLflow's: its mirrors go over HTTP to an MLflow server that requires credentials."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracing.client import TracingClient

from agent_gateway_client.demo._server import MlflowServer
from agent_gateway_client.server.export.environment import exporter_from_environment
from agent_gateway_client.w3c import TraceContext
from tests.support.e2e import DEADLINE_S, Database
from tests.support.server import begin_trace, full_call

USER, PASSWORD, TOKEN = "admin", "a password of the tests", "a-token-of-the-tests"
AUTH = """
[mlflow]
default_permission = READ
database_uri = sqlite:///basic_auth.db
authorization_function = by_token_or_password:authenticate
"""
BY_TOKEN_OR_PASSWORD = f"""
from flask import request
from mlflow.server.auth import authenticate_request_basic_auth
from werkzeug.datastructures import Authorization

def authenticate():
    if request.headers.get("Authorization") == "Bearer {TOKEN}":
        return Authorization("basic", {{"username": "{USER}", "password": ""}})
    return authenticate_request_basic_auth()
"""
"""MLflow's own way to check tokens: a function, which passes requests with a password to MLflow's."""

BY_TOKEN = {"MLFLOW_TRACKING_TOKEN": TOKEN}
BY_PASSWORD = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
WRONG = [
    {},
    {"MLFLOW_TRACKING_TOKEN": "another"},
    {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": "wrong"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[MlflowServer]:
    (directory / "auth.ini").write_text(AUTH)
    (directory / "by_token_or_password.py").write_text(BY_TOKEN_OR_PASSWORD)
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(directory / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the tests",
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "PYTHONPATH": os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")]),
    }
    store = f"sqlite:///{directory / 'mlflow.db'}"
    server = MlflowServer(directory, store, app_name="basic-auth", port=None, env=environment)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(autouse=True)
def tracking(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the server in the environment, without credentials."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    for name in (*BY_TOKEN, *BY_PASSWORD):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("credentials", [BY_TOKEN, BY_PASSWORD], ids=["token", "password"])
def test_credentials_of_the_environment(credentials: dict[str, str], directory: Path, monkeypatch: pytest.MonkeyPatch):
    """MLflow's own variables authenticate; mirrors wait while they are wrong, and arrive once they are fixed."""
    trace_id = secrets.randbits(128)
    exporter = exporter_from_environment()
    with monkeypatch.context() as patch:
        for name, value in BY_PASSWORD.items():
            patch.setenv(name, value)
        begin_trace(TracingClient().store, TraceContext(trace_id, 7, 1))
    database = Database(directory / "mlflow.db")
    for wrong in WRONG:
        with monkeypatch.context() as patch:
            for name, value in wrong.items():
                patch.setenv(name, value)
            exporter.submit(full_call(parent=TraceContext(trace_id, 7, 1)))
            assert not exporter.flush(0.5)
    assert database.spans(f"tr-{trace_id:032x}") == []
    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    assert exporter.flush(DEADLINE_S)
    names = [span["name"] for span in database.spans(f"tr-{trace_id:032x}")]
    assert sorted(set(names)) == ["gateway/chat", "provider/anthropic/claude-3-5-haiku", "provider/openai/gpt-4o"]
    assert exporter.dropped == 0
