"""No payload is in the caller's trace, and the caller's trace context is not forwarded to the provider."""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import mlflow
import openai
import pytest
from mlflow.entities import Span

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import Database, assert_linked, httpx_client, mirrored, mirrors_in, openai_client, tracing_into
from tests.support.routes import ROUTES, Route

CANARY = "c4n4ry7f3a"
ASK: Any = [{"role": "system", "content": f"{CANARY}-system"}, {"role": "user", "content": f"say {CANARY}"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": f"look_up_{CANARY}",
        "description": CANARY,
        "parameters": {"type": "object", "properties": {"what": {"type": "string", "description": CANARY}}},
    },
}
HEADERS = {
    "x-canary": CANARY,
    CANARY: "1",
    "user-agent": CANARY,
    "cookie": f"session={CANARY}",
    "referer": f"http://{CANARY}/",
    "x-request-id": CANARY,
    "openai-organization": CANARY,
    "baggage": f"user={CANARY}",
}


def each(chunks: Any) -> None:
    """Read a stream to its end."""
    for _ in chunks:
        pass


def tool_loop(client: openai.OpenAI) -> None:
    """Let the model call a tool with the canary as an argument, and return the tool's result to it."""
    chosen = client.chat.completions.create(model="chat", messages=ASK, tools=[TOOL])
    (call,) = chosen.choices[0].message.tool_calls or []
    assert CANARY in call.function.arguments  # type: ignore[union-attr]
    result = {"role": "tool", "tool_call_id": call.id, "content": f"{CANARY}-result"}
    messages = [*ASK, chosen.choices[0].message.model_dump(exclude_none=True), result]
    client.chat.completions.create(model="chat", messages=messages, tools=[TOOL])


OPENAI_CALLS: dict[str, Callable[[openai.OpenAI], object]] = {
    "chat": lambda client: client.chat.completions.create(model="chat", messages=ASK, user=CANARY),
    "stream": lambda client: each(client.chat.completions.create(model="chat", messages=ASK, stream=True)),
    "tools": tool_loop,
    "responses": lambda client: client.responses.create(model="responses", input=CANARY, instructions=CANARY),
    "fallback": lambda client: client.chat.completions.create(model="fallback", messages=ASK),
    "failing": lambda client: client.chat.completions.create(model="failing", messages=ASK),
}
"""An agent's SDK calls, with the canary wherever the caller, the model or an error can insert text."""

CHAT = {"messages": ASK}
HTTP_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "untracked": ("/openai/v1/chat/completions", {"model": "untracked", **CHAT}),
    "unified": ("/mlflow/v1/chat/completions", {"model": "chat", **CHAT}),
    "unified failing": ("/mlflow/v1/chat/completions", {"model": "failing", **CHAT}),
    "unified stream": ("/mlflow/v1/chat/completions", {"model": "chat", "stream": True, **CHAT}),
    "invocations": ("/chat/mlflow/invocations", CHAT),
    "invocations, unknown endpoint": (f"/{CANARY}/mlflow/invocations", CHAT),
    "invocations, invalid": ("/chat/mlflow/invocations", {CANARY: CANARY}),
    "anthropic": ("/anthropic/v1/messages", {"model": "claude", "max_tokens": 9, **CHAT}),
    "gemini": (
        f"/gemini/v1beta/models/gemini:generateContent?q={CANARY}",
        {"contents": [{"parts": [{"text": CANARY}]}]},
    ),
    "gemini, unknown endpoint": (f"/gemini/v1beta/models/{CANARY}:generateContent", {"contents": []}),
    "proxy": (f"/proxy/chat/v1/chat/completions?q={CANARY}", {"model": CANARY, **CHAT}),
    "proxy, unknown path": (f"/proxy/chat/v1/{CANARY}", {"model": CANARY, **CHAT}),
    "no such route": (f"/{CANARY}/{CANARY}", CHAT),
}
"""Calls to MLflow's own routes, with the canary in paths and queries too."""


@pytest.fixture(scope="module")
def steps(gateway: DemoGateway) -> Iterator[dict[str, Span]]:
    """The caller's span of each call; the caller itself does not trace the payload."""
    found = {}
    with tracing_into(gateway), httpx_client(gateway, headers=HEADERS) as http:
        for name, (path, body) in HTTP_CALLS.items():
            with mlflow.start_span("step") as step:
                http.post(path, json=body)
            found[name] = step
        yield found


@pytest.mark.parametrize("name", HTTP_CALLS)
def test_no_payload_is_stored_for_the_caller(name: str, steps: dict[str, Span], database: Database):
    """No row of the caller's trace in any table contains the canary; only the gateway's own trace does."""
    step = steps[name]
    trace = mirrored(step)
    rows = database.rows_of(step.trace_id)
    assert {"spans", "trace_info"} <= {row["table"] for row in rows}
    assert len([row for row in rows if row["table"] == "spans"]) == len(trace.data.spans)
    assert [row for row in rows if CANARY in json.dumps(row).lower()] == []
    if "mlflow.gateway.linkedTraceId" in mirrors_in(trace)[0].attributes:
        own = assert_linked(mirrors_in(trace)[0])
        assert CANARY in str(database.rows_of(own.info.trace_id)), "the payload stays in the gateway's own trace"


def test_with_autolog_only_the_clients_own_spans_hold_the_payload(
    gateway: DemoGateway, autolog: None, database: Database
):
    """If the client itself traces its payload, the companion's spans still contain none of it."""
    with tracing_into(gateway), openai_client(gateway, default_headers=HEADERS) as client:
        with mlflow.start_span("step") as step:
            for call in OPENAI_CALLS.values():
                with contextlib.suppress(openai.APIError):
                    call(client)
        mirrored(step, 7)
    rows = database.spans(step.trace_id)
    ours = {row["span_id"] for row in rows if row["name"].startswith(("gateway/", "provider/"))}
    assert len(ours) == 7 + 8
    for row in database.rows_of(step.trace_id):
        if row.get("span_id") in ours:
            assert CANARY not in json.dumps(row).lower()
    others = [row for row in rows if row["span_id"] not in ours]
    assert any(CANARY in json.dumps(row) for row in others), "autolog did trace the payload"


CONTEXT = {
    "TraceParent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "TRACESTATE": "vendor=1",
    "baggage": "user=1",
}


@pytest.mark.parametrize("context", [CONTEXT, {**CONTEXT, "TraceParent": "invalid"}], ids=["valid", "invalid"])
@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_the_provider_does_not_receive_the_callers_context(route: Route, context: dict[str, str], gateway: DemoGateway):
    """No route forwards traceparent, tracestate or baggage to the provider; other headers pass as before."""
    gateway.provider.clear()
    with httpx.Client(base_url=gateway.gateway_url, timeout=60) as http:
        answer = http.post(route.path, json=route.body, headers={**context, "x-kept": "1"})
    assert answer.status_code == 200, answer.text
    # MLflow's Databricks provider makes other requests before the call.
    *_, call = received = gateway.provider.requests
    for request in received:
        for name in ("traceparent", "tracestate", "baggage"):
            assert request.header(name) == []
    if route.request_type.startswith(("passthrough/", "proxy/")):
        assert call.header("x-kept") == ["1"]
