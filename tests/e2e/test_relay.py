"""LiteLLM Proxy with its own ``otel`` callback (integrations/litellm-otel), through the relay into a real MLflow.

Nothing of ours is in the proxy.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import mlflow
import pytest
from mlflow.entities import Span

from tests.support.e2e import CHAT, USER, Database, assert_mirror, mirrored, mirrors_in, wait_for
from tests.support.relay import LITELLM_OTEL, OtelProxy

MINI = [("openai/gpt-4o-mini", "OK")]
FELL_BACK = [("openai/gpt-4o-fail-503", "ERROR"), *MINI]
CANARY = "c4n4ry7f3a"
MODES: dict[str, tuple[dict[str, Any], list[tuple[str, str]], int]] = {
    "chat": ({"model": "chat"}, MINI, 200),
    "stream": ({"model": "chat", "stream": True}, MINI, 200),
    "fallback": ({"model": "fallback"}, FELL_BACK, 200),
    "failing": ({"model": "failing"}, [("openai/gpt-4o-mini-fail-500", "ERROR")], 500),
}
"""A request, the attempts that it takes, and the status of the answer."""


@pytest.fixture(scope="module", params=LITELLM_OTEL)
def proxy(request: pytest.FixtureRequest, litellm_otel: Callable[[str], OtelProxy], tracing: str) -> OtelProxy:
    """A proxy with each version of the callback."""
    return litellm_otel(request.param)


def ask(proxy: OtelProxy, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[Span, httpx.Response]:
    """Make a call below a span of its own."""
    with proxy.column.httpx_client(headers) as client, mlflow.start_span("step") as step:
        answer = client.post("chat/completions", json={**CHAT, **body})
    return step, answer


@pytest.mark.parametrize("mode", MODES)
def test_the_mirror_says_what_the_gateway_did(proxy: OtelProxy, mode: str):
    """Parent, times, status, attempts and tokens are those of the companion in the proxy."""
    body, attempts, status = MODES[mode]
    step, answer = ask(proxy, body)
    assert answer.status_code == status
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    assert mirror.name == f"gateway/{body['model']}"
    # LiteLLM ends its root after the last byte has gone out.
    spans = assert_mirror(trace, mirror, step, attempts, is_within=False)
    assert mirror.status.status_code == ("OK" if status == 200 else "ERROR")
    assert mirror.attributes.get("error.type") == (None if status == 200 else str(status))
    assert [span.attributes.get("error.type") for span in spans if span.status.status_code == "ERROR"] == [
        name.partition("-fail-")[2] for name, told in attempts if told == "ERROR"
    ]
    assert trace.info.token_usage == (
        {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8} if status == 200 else None
    )
    assert (trace.info.cost is not None) is (status == 200)


def test_calls_at_once(proxy: OtelProxy):
    """Thirty calls of one trace are thirty mirrors, each below its own span, and each once."""
    with mlflow.start_span("fan out") as root:

        def call(number: int) -> Span:
            span = mlflow.start_span_no_context(f"call {number}", parent_span=root)
            headers = {"traceparent": f"00-{root.trace_id.removeprefix('tr-')}-{span.span_id}-01"}
            with proxy.column.httpx_client(headers) as client:
                body = {"model": "chat" if number % 5 else "fallback", **CHAT}
                assert client.post("chat/completions", json=body).status_code == 200
            span.end()
            return span

        with ThreadPoolExecutor(10) as threads:
            steps = list(threads.map(call, range(30)))
    trace = mirrored(root, len(steps))
    by_parent = {mirror.parent_id: mirror for mirror in mirrors_in(trace)}
    assert len(mirrors_in(trace)) == len(by_parent) == len(steps)
    for number, step in enumerate(steps):
        attempts = MINI if number % 5 else FELL_BACK
        assert_mirror(trace, by_parent[step.span_id], step, attempts, is_within=False)


def test_nothing_of_the_payload_is_stored(proxy: OtelProxy, database: Database):
    """The proxy sends prompts, answers, headers and error messages to the relay; the trace has none of it."""
    said = [{"role": "system", "content": CANARY}, {"role": "user", "content": f"say {CANARY}"}]
    headers = {"x-canary": CANARY, "user-agent": CANARY, "x-request-id": CANARY}
    for model in ("chat", "fallback", "failing"):
        body = {"model": model, "messages": said, "user": CANARY, "metadata": {"generation_name": CANARY}}
        step, _ = ask(proxy, body, headers)
        mirrored(step)
        rows = database.rows_of(step.trace_id)
        assert {"spans", "trace_info"} <= {row["table"] for row in rows}
        assert [row for row in rows if CANARY in json.dumps(row).lower()] == []


def test_no_mirror_where_there_must_be_none(proxy: OtelProxy, database: Database):
    """A caller that was not let in, a model that does not exist, and a call that is not traced leave nothing."""
    before = database.mirror_count()
    refused, answer = ask(proxy, {"model": "chat"}, {"authorization": "Bearer wrong"})
    assert answer.status_code in (400, 401)
    unknown, answer = ask(proxy, {"model": CANARY})
    assert answer.status_code == 400
    with proxy.column.httpx_client() as client:
        assert client.post("chat/completions", json={"model": "chat", **CHAT}).status_code == 200
    # The last one of all is mirrored, so no other is still to come.
    last, _ = ask(proxy, {"model": "chat"})
    mirrored(last)
    for what, step in {"refused": refused, "unknown": unknown}.items():
        spans = wait_for("the agent's own trace", lambda step=step: database.spans(step.trace_id))
        assert [row["name"] for row in spans] == ["step"], what
    assert database.mirror_count() - before == 1


def test_a_client_that_hangs_up(proxy: OtelProxy):
    """The mirror says whose doing it was."""
    with proxy.column.openai_client() as client, mlflow.start_span("step") as step:
        stream = client.chat.completions.create(model="long", messages=[USER], stream=True)  # type: ignore[list-item]
        next(stream)
        stream.close()
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    assert mirror.parent_id == step.span_id
    assert mirror.attributes["error.type"] == "client_disconnect"


def test_what_became_of_the_spans(proxy: OtelProxy):
    """GET /health counts them: LiteLLM sends several that are no calls for each one that is."""
    status = proxy.relay.health()
    assert status["status"] == "ok"
    assert status["unrecognised"] > status["recognised"] > 0
    assert status.get("dropped", 0) == 0
