"""Other server setups: behind MLflow's authentication, several workers, without MLflow's span batches."""

import asyncio
import base64
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
from mlflow.entities import Span

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import (
    DEADLINE_S,
    USER,
    Database,
    assert_linked,
    assert_mirror,
    async_openai_client,
    begun,
    mirrored,
    mirrors_in,
    openai_client,
    tracing_into,
    wait_for,
)
from tests.support.workers import gateway_with_workers

MESSAGES: Any = [USER]
MINI = [("openai/gpt-4o-mini", "OK")]
CREDENTIALS = ("admin", "a password of the tests")
CALLS = 24
AUTH = """
[mlflow]
default_permission = USE
database_uri = sqlite:///basic_auth.db
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 600
"""
"""MLflow's own settings, except that every user may call the gateway, and that passwords are cached."""

GUIDE = Path(__file__).parents[2] / "docs" / "who-may-join.md"


def basic(name: str, password: str) -> dict[str, str]:
    """Return the header with a user's credentials."""
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


BASIC = basic(*CREDENTIALS)


def post_chat(gateway: DemoGateway, trace_id: str, headers: dict[str, str] | None = None) -> int:
    """Make a call in an unknown trace, on a separate connection; returns the status."""
    body = {"model": "chat", "messages": [USER]}
    traceparent = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    url = f"{gateway.openai_base_url}/chat/completions"
    return httpx.post(url, json=body, headers={**(headers or {}), **traceparent}, timeout=DEADLINE_S).status_code


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoGateway]:
    """MLflow's basic-auth app inside the companion with the guide's predicate; this process is logged in."""
    directory = tmp_path_factory.mktemp("guarded")
    (predicate,) = re.findall(r"^```python\n# our_tenants\.py\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    (directory / "our_tenants.py").write_text(predicate)
    (directory / "auth.ini").write_text(AUTH)
    environment = {
        "AGENT_GATEWAY_MLFLOW_APP": "basic-auth",
        "AGENT_GATEWAY_MAY_JOIN": "our_tenants:may_join",
        "PYTHONPATH": os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "MLFLOW_AUTH_CONFIG_PATH": str(directory / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the tests",
        "MLFLOW_AUTH_ADMIN_USERNAME": CREDENTIALS[0],
        "MLFLOW_AUTH_ADMIN_PASSWORD": CREDENTIALS[1],
    }
    with (
        DemoGateway(env=environment, directory=directory, credentials=CREDENTIALS) as gateway,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("MLFLOW_TRACKING_USERNAME", CREDENTIALS[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", CREDENTIALS[1])
        with tracing_into(gateway):
            yield gateway


def test_behind_authentication(guarded: DemoGateway):
    """A call with credentials is mirrored and linked as without MLflow's authentication."""
    with openai_client(guarded, default_headers=BASIC) as client, mlflow.start_span("step") as step:
        client.chat.completions.create(model="chat", messages=MESSAGES)
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    assert_mirror(trace, mirror, step, MINI)
    assert_linked(mirror)


def test_the_status_behind_authentication(guarded: DemoGateway):
    """MLflow's users may read it; unauthenticated requests, and those for another host, get MLflow's own answer."""
    url = f"{guarded.tracking_uri}/agent-gateway/status"
    for headers in ({}, basic("admin", "wrong")):
        answer = httpx.get(url, headers=headers, timeout=DEADLINE_S)
        assert (answer.status_code, "destination" in answer.text) == (401, False)
    assert httpx.get(url, headers={**BASIC, "Host": "evil.example"}, timeout=DEADLINE_S).status_code == 403
    told = httpx.get(url, headers=BASIC, timeout=DEADLINE_S)
    assert (told.status_code, told.json()["may_join"]) == (200, "our_tenants:may_join")


def test_who_may_not_call_may_not_write_a_trace(guarded: DemoGateway):
    """A request that MLflow's authentication rejects is rejected, and leaves nothing in any trace."""
    wrong = {"Authorization": "Basic " + base64.b64encode(b"admin:wrong").decode()}
    trace_id = begun(secrets.token_hex(16))
    for headers in ({}, wrong):
        assert post_chat(guarded, trace_id, headers) == 401
    # The exporter sends in order: the mirror of a later call comes after those of the calls above.
    later = begun(secrets.token_hex(16))
    assert post_chat(guarded, later, BASIC) == 200
    database = Database(guarded.log_path.parent / "mlflow.db")
    wait_for("the mirror", lambda: database.spans(f"tr-{later}"))
    assert database.spans(f"tr-{trace_id}") == []


def test_who_may_join(guarded: DemoGateway):
    """All users may call the gateway, but only those whom the predicate allows can write into a trace."""
    traces = {}
    for name in ("mallory", "alice"):
        user = {"username": name, "password": "a password of the tests"}
        created = httpx.post(f"{guarded.tracking_uri}/api/2.0/mlflow/users/create", json=user, headers=BASIC)
        assert created.status_code == 200, created.text
        traces[name] = begun(secrets.token_hex(16))
        assert post_chat(guarded, traces[name], basic(name, user["password"])) == 200
    database = Database(guarded.log_path.parent / "mlflow.db")
    wait_for("the mirror", lambda: database.spans(f"tr-{traces['alice']}"))
    assert database.spans(f"tr-{traces['mallory']}") == []


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoGateway]:
    """Two workers, in a configuration in which MLflow's own mirror would work."""
    environment = {"MLFLOW_USE_BATCH_SPAN_PROCESSOR": "false"}
    with gateway_with_workers(2, env=environment, directory=tmp_path_factory.mktemp("workers")) as gateway:
        yield gateway


def test_two_workers(workers: DemoGateway):
    """Calls to both workers are all mirrored, each below its own caller's span, and linked."""

    async def run() -> list[Span]:
        async def call() -> Span:
            # One client each: kept-alive connections would all lead to one worker.
            async with async_openai_client(workers) as client:
                with mlflow.start_span("step") as step:
                    await client.chat.completions.create(model="chat", messages=MESSAGES)
            return step

        with mlflow.start_span("fan out"):
            return await asyncio.gather(*(call() for _ in range(CALLS)))

    with tracing_into(workers):
        steps = asyncio.run(run())
        trace = mirrored(steps[0], CALLS)
        by_parent = {mirror.parent_id: mirror for mirror in mirrors_in(trace)}
        assert len(mirrors_in(trace)) == len(by_parent) == CALLS
        for step in steps:
            assert_mirror(trace, by_parent[step.span_id], step, MINI)
            assert_linked(by_parent[step.span_id])


def test_there_is_one_mirror_where_mlflows_own_would_work(workers: DemoGateway):
    """With MLFLOW_USE_BATCH_SPAN_PROCESSOR=false each call also has exactly one mirror, plain or streamed."""
    with tracing_into(workers), openai_client(workers) as client:
        steps = []
        for stream in (False, True):
            with mlflow.start_span("step") as step:
                answer = client.chat.completions.create(model="chat", messages=MESSAGES, stream=stream)
                for _ in answer:
                    pass
            steps.append(step)
        for step in steps:
            trace = mirrored(step)
            (mirror,) = mirrors_in(trace)
            assert_mirror(trace, mirror, step, MINI)
            assert_linked(mirror)
            assert len(trace.data.spans) == 3
            assert trace.info.token_usage is not None
            assert trace.info.token_usage["input_tokens"] == 3


def test_a_clean_stop_loses_no_mirror(workers: DemoGateway):
    """Mirrors of calls right before the server stops are in its database after the stop."""
    with tracing_into(workers):
        trace_ids = [begun(secrets.token_hex(16)) for _ in range(10)]
    for trace_id in trace_ids:
        assert post_chat(workers, trace_id) == 200
    workers.stop_server()
    database = Database(workers.log_path.parent / "mlflow.db")
    for trace_id in trace_ids:
        names = [span["name"] for span in database.spans(f"tr-{trace_id}")]
        assert names == ["gateway/chat", "provider/openai/gpt-4o-mini"]
