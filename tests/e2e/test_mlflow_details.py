"""Facts read from the answers of a real MLflow AI Gateway that MLflow itself does not report."""

from typing import Any

import httpx
import mlflow
import pytest

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import USER, assert_mirror, children_of, mirrored, mirrors_in, read_trace, wait_for
from tests.support.routes import reported_usage

UNREPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "raw proxy": ("/proxy/chat/v1/chat/completions", {"model": "gpt-4o-mini"}),
    "untracked, unified": ("/mlflow/v1/chat/completions", {"model": "untold"}),
    "untracked, invocations": ("/untold/mlflow/invocations", {}),
    "untracked, passthrough": ("/openai/v1/chat/completions", {"model": "untold"}),
}


@pytest.fixture(scope="module")
def untold(gateway: DemoGateway) -> None:
    """An endpoint without usage tracking."""
    gateway.create_endpoint("untold", ["gpt-4o-mini"], usage_tracking=False)


@pytest.mark.parametrize("stream", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("name", UNREPORTED)
def test_tokens_that_mlflow_does_not_report(name: str, stream: bool, http: httpx.Client, untold: None):
    """On the raw proxy, and without usage tracking, the tokens are those of the answer, once."""
    path, body = UNREPORTED[name]
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    with mlflow.start_span("step") as step:
        answer = http.post(path, json={**body, **options, "messages": [USER]})
    assert answer.status_code == 200, answer.text
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    (attempt,) = assert_mirror(trace, mirror, step, [("openai/gpt-4o-mini", "OK")])
    reported = reported_usage(answer.content)
    assert set(reported) == {"input_tokens", "output_tokens"}
    assert {key: attempt.attributes["mlflow.chat.tokenUsage"][key] for key in reported} == reported
    # MLflow reads a trace's totals before its spans: a mirror that arrives in between is only in the spans.
    sums = wait_for("the trace's tokens", lambda: getattr(read_trace(step.trace_id), "info", trace.info).token_usage)
    assert sums["total_tokens"] == sum(reported.values())


def test_mlflows_own_numbers_stay(http: httpx.Client):
    """If MLflow reports tokens and cost, they are unchanged: the failed attempt has none."""
    with mlflow.start_span("step") as step:
        answer = http.post("/mlflow/v1/chat/completions", json={"model": "fallback", "messages": [USER]})
    trace = mirrored(step)
    failed, answered = children_of(trace, mirrors_in(trace)[0])
    assert "mlflow.chat.tokenUsage" not in failed.attributes
    assert "gen_ai.response.finish_reasons" not in failed.attributes
    assert answered.attributes["mlflow.llm.cost"]["total_cost"] > 0
    usage = reported_usage(answer.content)
    assert {name: answered.attributes["mlflow.chat.tokenUsage"][name] for name in usage} == usage
