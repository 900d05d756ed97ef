"""MLflow's basic-auth with the companion's defaults: a mirror is written only if its caller may write."""

import secrets
from collections.abc import Iterator

import httpx
import pytest
from mlflow.tracing.client import TracingClient

from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.w3c import TraceContext
from tests.e2e.test_other_servers import AUTH, CREDENTIALS, basic, post_chat
from tests.support.e2e import DEADLINE_S, Database, wait_for
from tests.support.server import begin_trace

pytest.importorskip("flask_wtf", reason="mlflow[auth] is not in this environment's constraints file")

PASSWORD = "a password of the tests"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoGateway]:
    """MLflow's basic-auth app inside the companion, with two users and an administrator."""
    directory = tmp_path_factory.mktemp("permissions")
    # MLflow 3.15 reads the administrator from this file, not from the environment.
    administrator = f"admin_username = {CREDENTIALS[0]}\nadmin_password = {CREDENTIALS[1]}\n"
    (directory / "auth.ini").write_text(AUTH + administrator)
    environment = {
        "AGENT_GATEWAY_MLFLOW_APP": "basic-auth",
        "MLFLOW_AUTH_CONFIG_PATH": str(directory / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the tests",
        "MLFLOW_AUTH_ADMIN_USERNAME": CREDENTIALS[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": CREDENTIALS[1],
    }
    with DemoGateway(env=environment, directory=directory, credentials=CREDENTIALS) as gateway:
        for name in ("alice", "mallory"):
            user = {"username": name, "password": PASSWORD}
            url = f"{gateway.tracking_uri}/api/2.0/mlflow/users/create"
            assert httpx.post(url, json=user, headers=basic(*CREDENTIALS)).status_code == 200
        yield gateway


@pytest.fixture(scope="module")
def experiment(guarded: DemoGateway) -> str:
    """Alice's experiment, which everybody may read."""
    created = httpx.post(
        f"{guarded.tracking_uri}/api/2.0/mlflow/experiments/create",
        json={"name": "agents of alice"},
        headers=basic("alice", PASSWORD),
    )
    assert created.status_code == 200, created.text
    return str(created.json()["experiment_id"])


def begin(gateway: DemoGateway, experiment_id: str) -> str:
    """Start a trace in an experiment; returns its id."""
    trace_id = secrets.token_hex(16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", CREDENTIALS[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", CREDENTIALS[1])
        begin_trace(TracingClient(gateway.tracking_uri).store, TraceContext(int(trace_id, 16), 1, 1), experiment_id)
    return trace_id


def test_only_who_may_write_to_the_experiment(guarded: DemoGateway, experiment: str, monkeypatch: pytest.MonkeyPatch):
    """Both users may call the gateway. Their permissions at the time of writing decide about mirrors."""
    database = Database(guarded.log_path.parent / "mlflow.db")

    def names_after(caller: str, *others: str) -> dict[str, list[str]]:
        """Call as each of these users, last the one who may write; returns the mirrors by the trace's user."""
        traces = {name: begin(guarded, experiment) for name in (*others, caller)}
        for name, trace_id in traces.items():
            credentials = CREDENTIALS if name == CREDENTIALS[0] else (name, PASSWORD)
            assert post_chat(guarded, trace_id, basic(*credentials)) == 200
        # The exporter sends in order: the mirror of a later call comes after those of earlier calls.
        wait_for("the mirror", lambda: database.spans(f"tr-{traces[caller]}"))
        return {name: [span["name"] for span in database.spans(f"tr-{id_}")] for name, id_ in traces.items()}

    mirror = ["gateway/chat", "provider/openai/gpt-4o-mini"]
    assert names_after("alice", "mallory") == {"mallory": [], "alice": mirror}
    assert names_after(CREDENTIALS[0], "mallory") == {"mallory": [], CREDENTIALS[0]: mirror}
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", CREDENTIALS[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CREDENTIALS[1])
    from mlflow.server.auth.client import AuthServiceClient

    rights = AuthServiceClient(guarded.tracking_uri)
    rights.grant_user_permission("mallory", "experiment", experiment, "EDIT")
    assert names_after("mallory") == {"mallory": mirror}
    rights.revoke_user_permission("mallory", "experiment", experiment)
    assert names_after("alice", "mallory") == {"mallory": [], "alice": mirror}
    assert "may not write to the experiment" in guarded.log_path.read_text()


def test_a_made_up_traceparent_reads_nothing(guarded: DemoGateway, experiment: str):
    """A caller without permission for the experiment gets the same answer as one with it."""
    trace_id = begin(guarded, experiment)
    answers = []
    for name in ("alice", "mallory"):
        headers = {**basic(name, PASSWORD), "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
        answer = httpx.post(
            f"{guarded.openai_base_url}/chat/completions",
            json={"model": "chat", "messages": [{"role": "user", "content": "one"}]},
            headers=headers,
            timeout=DEADLINE_S,
        )
        answers.append((answer.status_code, sorted(answer.headers)))
    assert answers[0] == answers[1]
