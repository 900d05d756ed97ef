"""Requests that LiteLLM's key checks refuse; the callback gets only their bodies."""

import sys
import types
from collections.abc import Callable
from typing import Any

import httpx
import litellm
import pytest
from fastapi import FastAPI, HTTPException, Request
from litellm.proxy._types import UserAPIKeyAuth

from agent_gateway_client.server.litellm_proxy import LiteLLMProxyMirror
from agent_gateway_client.server.litellm_proxy._requests import current_request, observe_requests
from tests.support.server import PARENT, TRACEPARENT, MemoryDestination, facts_of, ids_of

KEYS = "litellm.proxy.proxy_server"
OWNER = UserAPIKeyAuth(api_key="sk-1", team_id="ours")
EXHAUSTED = litellm.BudgetExceededError(2.0, 1.0)
TRACED = {"traceparent": TRACEPARENT}

Refusing = Callable[..., FastAPI]


@pytest.fixture
def refusing(mirror: LiteLLMProxyMirror, monkeypatch: pytest.MonkeyPatch) -> Refusing:
    """Makes a proxy's application whose key checks refuse each request, as LiteLLM's do."""

    def make(error: Exception, user: Any) -> FastAPI:
        app = FastAPI()

        @app.post("/{path:path}")
        async def refuse(request: Request) -> None:
            await mirror.async_post_call_failure_hook(await request.json(), error, user)
            raise HTTPException(429)

        monkeypatch.setitem(sys.modules, KEYS, types.SimpleNamespace(app=app))
        return app

    return make


async def post(app: FastAPI, path: str = "/v1/chat/completions", headers: Any = None, body: Any = None) -> int:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gw") as client:
        sent = {"model": "made up"} if body is None else body
        return (await client.post(path, json=sent, headers=TRACED if headers is None else headers)).status_code


@pytest.mark.parametrize("started", [False, True], ids=["before the start", "after the start"])
async def test_a_budget_that_is_exhausted(
    started: bool, refusing: Refusing, mirror: LiteLLMProxyMirror, destination: MemoryDestination
):
    """A refusal of a key that LiteLLM knows is mirrored under the caller, named after the route."""
    app = refusing(EXHAUSTED, OWNER)
    if started:
        await post(app, headers={})
    observe_requests()
    assert await post(app) == 429
    mirror.shutdown()
    (span,) = destination.spans
    assert span.name == "gateway/chat/completions"
    assert ids_of(span)[1] == PARENT.span_id
    status = EXHAUSTED.status_code
    assert {"error.type": str(status), "http.response.status_code": status}.items() <= facts_of(span).items()


@pytest.mark.parametrize(
    ("error", "user", "path", "headers"),
    [
        (EXHAUSTED, UserAPIKeyAuth(), "/v1/chat/completions", TRACED),
        (EXHAUSTED, None, "/v1/chat/completions", TRACED),
        (HTTPException(401), OWNER, "/v1/chat/completions", TRACED),
        (HTTPException(403), OWNER, "/v1/chat/completions", TRACED),
        (EXHAUSTED, OWNER, "/team/update", TRACED),
        (EXHAUSTED, OWNER, "/v1/chat/completions", {}),
        (EXHAUSTED, OWNER, "/v1/chat/completions", {"traceparent": "nonsense"}),
        (EXHAUSTED, OWNER, "/v1/chat/completions", {"traceparent": f"{TRACEPARENT[:-2]}00"}),
    ],
    ids=["unknown", "nobody", "expired", "forbidden", "no model", "untraced", "invalid", "unsampled"],
)
async def test_what_leaves_nothing(
    error: Exception, user: Any, path: str, headers: Any, refusing: Refusing, mirror: LiteLLMProxyMirror,
    destination: MemoryDestination,
):  # fmt: skip
    """Nothing is mirrored of a caller that is not known or not let in, of other routes, and without a valid parent."""
    app = refusing(error, user)
    observe_requests()
    assert await post(app, path, headers) == 429
    mirror.shutdown()
    assert destination.spans == []


async def test_the_body_cannot_name_another_trace(
    refusing: Refusing, mirror: LiteLLMProxyMirror, destination: MemoryDestination
):
    """Only the request's header names the trace, and no text of the body is used."""
    forged = f"00-{'f0' * 16}-{'f0' * 8}-01"
    notes = {"headers": {"traceparent": forged}, "method": "GET", "arrival_time": 1.0, "url": "made up"}
    body = {"model": {"made": "up"}, "call_type": "arerank", "proxy_server_request": notes, "metadata": notes}
    app = refusing(EXHAUSTED, OWNER)
    observe_requests()
    await post(app, body=body)
    mirror.shutdown()
    (span,) = destination.spans
    assert (span.name, ids_of(span)[1]) == ("gateway/chat/completions", PARENT.span_id)
    assert "arerank" not in str(facts_of(span))


async def test_the_request_ends_with_its_task(refusing: Refusing):
    """After a request, and in the lifespan, there is none."""
    app = refusing(EXHAUSTED, None)
    observe_requests()
    await post(app)
    assert current_request() == {}


def test_without_a_proxy(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A process that is no proxy is left alone; a LiteLLM whose application is elsewhere gets one warning."""
    monkeypatch.delitem(sys.modules, KEYS, raising=False)
    observe_requests()
    assert caplog.text == ""
    monkeypatch.setitem(sys.modules, KEYS, types.SimpleNamespace())
    observe_requests()
    assert "what its key checks refuse is not mirrored" in caplog.text
