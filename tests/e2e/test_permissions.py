"""MLflow's basic-auth with the companion's defaults: a mirror is written only if its caller may write."""

import secrets
from collections.abc import Iterator

import httpx
import pytest
from mlflow.entities.gateway_budget_policy import (
    BudgetAction,
    BudgetDuration,
    BudgetDurationUnit,
    BudgetTargetScope,
    BudgetUnit,
)
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracing.client import TracingClient
from mlflow.utils.rest_utils import MlflowHostCreds

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


@pytest.fixture
def without_money(guarded: DemoGateway) -> Iterator[None]:
    """An exhausted budget for all calls of the gateway."""
    host = MlflowHostCreds(guarded.tracking_uri, *CREDENTIALS)  # type: ignore[no-untyped-call]
    store = RestStore(lambda: host)  # type: ignore[no-untyped-call]
    policy = store.create_budget_policy(
        BudgetUnit.USD,
        1e-9,
        BudgetDuration(BudgetDurationUnit.DAYS, 1),
        BudgetTargetScope.GLOBAL,
        BudgetAction.REJECT,
    )
    # The first call may be served; it costs more than that.
    wait_for("a refusal", lambda: post_chat(guarded, secrets.token_hex(16), basic(*CREDENTIALS)) == 429)
    yield
    store.delete_budget_policy(policy.budget_policy_id)


def test_an_exhausted_budget(guarded: DemoGateway, experiment: str, without_money: None):
    """The refusal is mirrored for a caller who may write, and not for a wrong password or another user."""
    database = Database(guarded.log_path.parent / "mlflow.db")
    callers = {"mallory": ("mallory", PASSWORD), "wrong": ("alice", "wrong"), "alice": ("alice", PASSWORD)}
    traces = {name: begin(guarded, experiment) for name in callers}
    statuses = {name: post_chat(guarded, traces[name], basic(*callers[name])) for name in callers}
    assert statuses == {"mallory": 429, "wrong": 401, "alice": 429}
    # The exporter sends in order: the mirror of the last call comes after those of the others.
    wait_for("the mirror", lambda: database.spans(f"tr-{traces['alice']}"))
    found = {name: database.spans(f"tr-{trace_id}") for name, trace_id in traces.items()}
    assert {name: len(spans) for name, spans in found.items()} == {"mallory": 0, "wrong": 0, "alice": 1}
    (mirror,) = found["alice"]
    assert (mirror["name"], mirror["status"]) == ("gateway/chat", "ERROR")
    assert (mirror["content"]["attributes"]["error.type"], mirror["content"]["status"]["message"]) == ('"429"', "")
    assert "udget" not in "".join(map(str, database.rows_of(f"tr-{traces['alice']}")))
