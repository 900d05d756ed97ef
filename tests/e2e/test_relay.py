"""LiteLLM Proxy with its own ``otel`` callback (integrations/litellm-otel), through the relay.

The cases outside the table in ``test_gateways.py``.
"""

from collections.abc import Callable
from typing import Any

import httpx
import mlflow
import pytest
from mlflow.entities import Span

from tests.support.e2e import CHAT, Database, mirrored, wait_for
from tests.support.relay import LITELLM_OTEL, OtelProxy

CANARY = "c4n4ry7f3a"


@pytest.fixture(scope="module", params=LITELLM_OTEL)
def proxy(request: pytest.FixtureRequest, litellm_otel: Callable[[str], OtelProxy], tracing: str) -> OtelProxy:
    """A proxy with each version of the callback."""
    return litellm_otel(request.param)


def ask(proxy: OtelProxy, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[Span, httpx.Response]:
    """Make a call below its own span."""
    with proxy.column.httpx_client(headers) as client, mlflow.start_span("step") as step:
        answer = client.post("chat/completions", json={**CHAT, **body})
    return step, answer


def test_no_mirror_where_there_must_be_none(proxy: OtelProxy, database: Database):
    """An unauthenticated caller, an unknown model, and an untraced call leave nothing."""
    before = database.mirror_count()
    refused, answer = ask(proxy, {"model": "chat"}, {"authorization": "Bearer wrong"})
    assert answer.status_code in (400, 401)
    unknown, answer = ask(proxy, {"model": CANARY})
    assert answer.status_code == 400
    with proxy.column.httpx_client() as client:
        assert client.post("chat/completions", json={"model": "chat", **CHAT}).status_code == 200
    # The last request is mirrored, so no other mirror is still to come.
    last, _ = ask(proxy, {"model": "chat"})
    mirrored(last)
    for what, step in {"refused": refused, "unknown": unknown}.items():
        spans = wait_for("the agent's own trace", lambda step=step: database.spans(step.trace_id))
        assert [row["name"] for row in spans] == ["step"], what
    assert database.mirror_count() - before == 1


def test_what_became_of_the_spans(proxy: OtelProxy):
    """GET /health counts them: for each call LiteLLM sends several other spans."""
    status = proxy.relay.health()
    assert status["status"] == "ok"
    assert status["unrecognised"] > status["recognised"] > 0
    assert status.get("dropped", 0) == 0
