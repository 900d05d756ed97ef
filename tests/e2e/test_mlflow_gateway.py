"""Every route of a real MLflow AI Gateway: one mirror per call, with the right parent, time, status and facts."""

from typing import NamedTuple

import httpx
import mlflow
import pytest
from mlflow.entities import Span, Trace

from tests.support.e2e import assert_linked, assert_mirror, mirrored, mirrors_in
from tests.support.routes import ROUTES, Route, reported_usage
from tests.support.server import assert_told


class Made(NamedTuple):
    """A call: the caller's innermost span, and the answer."""

    caller: Span
    answer: httpx.Response


@pytest.fixture(scope="module")
def made(http: httpx.Client) -> dict[str, Made]:
    """A call through each route, each in its own trace."""
    calls = {}
    for route in ROUTES:
        with mlflow.start_span("agent"), mlflow.start_span("step") as step:
            calls[str(route)] = Made(step, http.post(route.path, json=route.body))
    return calls


FINISH_REASONS = {
    "/openai/v1/responses": "completed",
    "/anthropic/v1/messages": "end_turn",
    "/gemini/v1beta/models/gemini:generateContent": "STOP",
    "/gemini/v1beta/models/gemini:streamGenerateContent": "STOP",
}
"""Providers' words on their own routes for a complete answer; other routes use OpenAI's."""


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_route_is_mirrored(route: Route, made: dict[str, Made], tracing: str):
    """A call through any route has one mirror with all facts, tokens that count once, and the linked trace."""
    step, answer = made[str(route)]
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream" if route.streamed else "application/json")
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    (attempt,) = assert_mirror(trace, mirror, step, [(route.model, "OK")])
    assert mirror.name == f"gateway/{route.endpoint}"
    assert mirror.status.status_code == "OK"
    facts = mirror.attributes
    assert facts["endpoint_name"] == route.endpoint
    assert facts["endpoint_id"].startswith("e-")
    assert_told(facts, {"http.response.status_code": 200, "gen_ai.request.stream": route.streamed})
    assert ("gen_ai.response.time_to_first_chunk" in facts) is route.streamed
    assert facts["server_url"] == f"{answer.url.host}:{answer.url.port}"
    finished = None if "embedding" in route.model else [FINISH_REASONS.get(route.path, "stop")]
    assert_told(attempt.attributes, {"gen_ai.response.finish_reasons": finished})
    assert (trace.info.state, trace.info.experiment_id) == ("OK", tracing)
    own = assert_linked(mirror)
    assert own.info.state == "OK"
    assert "mlflow.gateway.requestType" not in facts
    assert own.info.trace_metadata["mlflow.gateway.requestType"] == route.request_type
    assert own.info.experiment_id != trace.info.experiment_id
    assert {span.name for span in own.data.spans} == {f"gateway/{route.endpoint}", f"provider/{route.model}"}
    # MLflow does not read tokens on its raw proxy.
    if route.request_type != "proxy/raw":
        assert_tokens_and_cost(trace, own, reported_usage(answer.content))
        assert trace.info.cost or not route.model.startswith("openai/"), "MLflow knows the prices of these"


def assert_tokens_and_cost(trace: Trace, own: Trace, reported: dict[str, int]) -> None:
    """Assert that a trace has the provider's tokens once, and the cost that the gateway knows."""
    usage = trace.info.token_usage or {}
    assert reported
    assert {name: usage.get(name) for name in reported} == reported
    assert usage["total_tokens"] == sum(reported.values())
    costs = [span.attributes.get("mlflow.llm.cost") for span in own.data.spans]
    assert trace.info.cost == next(filter(None, costs), None)
