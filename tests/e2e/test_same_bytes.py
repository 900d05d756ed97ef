"""The companion does not change a byte of an answer."""

import re
from typing import Any

import httpx
import pytest

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import DEADLINE_S, USER
from tests.support.routes import ROUTES

CHAT = "/openai/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
REQUESTS: dict[str, tuple[str, Any]] = {
    **{str(route): (route.path, route.body) for route in ROUTES},
    "tools": (CHAT, {"model": "chat", "messages": [USER], "tools": [TOOL]}),
    "usage in the stream": (
        CHAT,
        {"model": "chat", "messages": [USER], "stream": True, "stream_options": {"include_usage": True}},
    ),
    "fallback": (CHAT, {"model": "fallback", "messages": [USER]}),
    "failing": (CHAT, {"model": "failing", "messages": [USER]}),
    "failing stream": (CHAT, {"model": "failing", "messages": [USER], "stream": True}),
    "failing, unified": ("/mlflow/v1/chat/completions", {"model": "failing", "messages": [USER]}),
    "untracked": (CHAT, {"model": "untracked", "messages": [USER]}),
    "untracked stream": (CHAT, {"model": "untracked", "messages": [USER], "stream": True}),
    "unknown endpoint": (CHAT, {"model": "nobody", "messages": [USER]}),
    "no model": (CHAT, {"messages": [USER]}),
    "no object": (CHAT, [1, 2]),
    "no such route": ("/nothing/here", {}),
}

TIMES = (b"date", b"x-mlflow-gateway-duration-ms", b"x-mlflow-gateway-overhead-duration-ms")

TRACEPARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


def answer_of(gateway: DemoGateway, path: str, body: Any, headers: dict[str, str]) -> tuple[int, list[Any], bytes]:
    """Return status, headers and body as sent over the wire; times in headers are replaced."""
    with httpx.Client(base_url=gateway.gateway_url, timeout=DEADLINE_S) as client:
        answer = client.post(path, json=body, headers=headers)
    raw = [(name, b"" if name.lower() in TIMES else value) for name, value in answer.headers.raw]
    # MLflow converts Anthropic's answers to OpenAI's, and adds the time.
    return answer.status_code, raw, re.sub(rb'"created":\d{10}', b'"created":now', answer.content)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_answer_is_the_same_without_the_companion(name: str, gateway: DemoGateway, plain: DemoGateway):
    """Status, headers and body are MLflow's own to the byte, traced or not."""
    path, body = REQUESTS[name]
    expected = answer_of(plain, path, body, {})
    assert expected[2]
    assert answer_of(gateway, path, body, {}) == expected
    assert answer_of(gateway, path, body, TRACEPARENT) == expected


def test_other_pages_are_the_same(gateway: DemoGateway, plain: DemoGateway):
    """Requests that are not gateway calls, like MLflow's UI and API, are unchanged."""
    for path in (
        "/",
        "/health",
        "/version",
        "/gateway/mlflow/v1/models",
        "/api/2.0/mlflow/experiments/get?experiment_id=0",
    ):
        pages = [
            httpx.get(f"{server.tracking_uri}{path}", headers=TRACEPARENT, timeout=DEADLINE_S)
            for server in (plain, gateway)
        ]
        assert pages[0].status_code == pages[1].status_code == 200
        assert pages[0].headers["content-type"] == pages[1].headers["content-type"]
        if not path.startswith(("/api/", "/gateway/")):
            assert pages[0].content == pages[1].content
