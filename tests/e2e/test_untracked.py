"""Endpoints without usage tracking: a mirror with the facts that HTTP shows, and still no gateway trace."""

from typing import Any

import mlflow
import pytest
from mlflow.entities import Span

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import USER, Database, children_of, httpx_client, mirrored, mirrors_in, openai_client
from tests.support.server import assert_told

CALLS = {
    "chat": ("/openai/v1/chat/completions", {"model": "quiet"}, 200),
    "stream": ("/openai/v1/chat/completions", {"model": "quiet", "stream": True}, 200),
    "unified": ("/mlflow/v1/chat/completions", {"model": "quiet"}, 200),
    "invocations": ("/quiet/mlflow/invocations", {}, 200),
    "failing": ("/openai/v1/chat/completions", {"model": "quiet-failing"}, 500),
}
REQUEST_TYPES = {
    "/openai/v1/chat/completions": "passthrough/model/openai-chat",
    "/mlflow/v1/chat/completions": "unified/chat",
    "/quiet/mlflow/invocations": "unified/invocations",
}
"""A mirror's request types for these routes, derived from the paths alone."""


@pytest.fixture(scope="module")
def steps(gateway: DemoGateway, tracing: str) -> dict[str, Span]:
    """The caller's span of each call."""
    gateway.create_endpoint("quiet", ["gpt-4o-mini"], usage_tracking=False)
    gateway.create_endpoint("quiet-failing", ["gpt-4o-mini-fail-500"], usage_tracking=False)
    found = {}
    with httpx_client(gateway) as http:
        for name, (path, body, status) in CALLS.items():
            with mlflow.start_span("step") as step:
                answer = http.post(path, json={**body, "messages": [USER]})
            assert answer.status_code == status
            found[name] = step
    return found


@pytest.mark.parametrize("name", CALLS)
def test_the_gateway_span_is_there(name: str, steps: dict[str, Span], database: Database):
    """The mirror has endpoint, route, status and times, and no link, since the gateway keeps no trace."""
    path, body, status = CALLS[name]
    step = steps[name]
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    endpoint = body.get("model", "quiet")
    assert mirror.name == f"gateway/{endpoint}"
    assert mirror.parent_id == step.span_id
    assert mirror.end_time_ns is not None
    assert step.end_time_ns is not None
    assert step.start_time_ns <= mirror.start_time_ns <= mirror.end_time_ns <= step.end_time_ns
    assert mirror.status.status_code == ("OK" if status == 200 else "ERROR")
    assert mirror.attributes.get("error.type") == (None if status == 200 else str(status))
    assert mirror.attributes["endpoint_name"] == endpoint
    assert mirror.attributes["endpoint_id"].startswith("e-")
    assert_told(mirror.attributes, {"http.response.status_code": status, "gen_ai.request.stream": name == "stream"})
    assert mirror.attributes["mlflow.gateway.requestType"] == REQUEST_TYPES[path]
    assert mirror.links == []
    assert "mlflow.gateway.linkedTraceId" not in mirror.attributes
    for attempt in children_of(trace, mirror):
        assert attempt.name.startswith("provider/")
        assert attempt.status.status_code == mirror.status.status_code
    mirrors = {steps[other].trace_id for other in CALLS}
    rows = database.rows("SELECT trace_id FROM spans WHERE name = ?", mirror.name)
    assert {row["trace_id"] for row in rows} <= mirrors, "there is no trace of the gateway's own"


def test_tokens_are_those_that_the_agent_was_told(gateway: DemoGateway, steps: dict[str, Span]):
    """If the tokens are known without MLflow's tracking, they are the provider's, once."""
    messages: Any = [USER]
    with openai_client(gateway) as client, mlflow.start_span("step") as step:
        answer = client.chat.completions.create(model="quiet", messages=messages)
    usage = mirrored(step).info.token_usage
    assert usage is not None
    assert answer.usage is not None
    assert usage["total_tokens"] == answer.usage.total_tokens
