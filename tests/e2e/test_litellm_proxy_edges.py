"""Edge cases of a LiteLLM Proxy: disconnects, its cache, pass-through routes, names."""

import json
import secrets
from typing import Any

import httpx
import mlflow
import pytest

from tests.support.e2e import (
    CHAT,
    Database,
    assert_mirror,
    children_of,
    mirrored,
    mirrors_in,
    open_step,
    wait_until_noticed,
)
from tests.support.litellm_proxy import LiteLLMProxy
from tests.support.server import assert_told

CANARY = "c4n4ry7f3a"
MINI = [("openai/gpt-4o-mini", "OK")]


@pytest.fixture
def proxy(litellm_proxy: LiteLLMProxy, tracing: str) -> LiteLLMProxy:
    """The proxy, and a client that traces."""
    return litellm_proxy


LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "responses": ("/v1/responses", {"input": "one two"}),
    "messages": ("/v1/messages", {"max_tokens": 9, **CHAT}),
}
"""Streams that take five seconds."""


@pytest.mark.parametrize("name", LONG)
def test_a_client_that_hangs_up_in_a_stream(name: str, proxy: LiteLLMProxy, database: Database):
    """If the client closed the connection mid-stream, the mirror is there, ended, and records the disconnect."""
    path, body = LONG[name]
    with proxy.httpx_client() as client, open_step() as step:
        with client.stream("POST", path, json={"model": "long", "stream": True, **body}) as answer:
            lines = answer.iter_lines()
            assert next(lines)
        # The agent goes on with something else until the gateway has noticed.
        wait_until_noticed(step, database)
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    (attempt,) = assert_mirror(trace, mirror, step, [("openai/gpt-4o-mini-long", "ERROR")])
    assert mirror.name == "gateway/long"
    assert mirror.attributes["error.type"] == attempt.attributes["error.type"] == "client_disconnect"
    assert_told(mirror.attributes, {"http.response.status_code": 200})
    assert mirror.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert not trace.info.token_usage


def test_a_client_that_hangs_up_before_the_answer(proxy: LiteLLMProxy, database: Database):
    """With LiteLLM's cancel_on_disconnect, a client that does not wait for its answer is not a failure."""
    with proxy.httpx_client() as client, open_step() as step:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json={"model": "slow", **CHAT}, timeout=0.5)
        wait_until_noticed(step, database)
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    (attempt,) = assert_mirror(trace, mirror, step, [("openai/gpt-4o-mini-slow", "ERROR")])
    assert mirror.attributes["error.type"] == attempt.attributes["error.type"] == "client_disconnect"


def test_a_client_that_stops_reading_at_the_last_event(proxy: LiteLLMProxy, database: Database):
    """Anthropic's clients close the connection at message_stop; that is not an early disconnect."""
    body = {"model": "claude", "max_tokens": 9, "stream": True, **CHAT}
    with proxy.httpx_client() as client, open_step() as step:
        with client.stream("POST", "/v1/messages", json=body) as answer:
            assert any(line == "event: message_stop" for line in answer.iter_lines())
        wait_until_noticed(step, database)
    (mirror,) = mirrors_in(mirrored(step))
    assert mirror.status.status_code == "OK"


@pytest.mark.parametrize("stream", [False, True], ids=["at once", "streamed"])
def test_an_answer_from_the_cache(stream: bool, proxy: LiteLLMProxy, database: Database):
    """A call answered from LiteLLM's cache has no provider attempt, no cost, and a fact that says so."""
    question = {"role": "user", "content": secrets.token_hex(8)}
    body = {"model": "chat", "messages": [question], "stream": stream, "cache": {"use-cache": True}}
    with proxy.httpx_client() as client, mlflow.start_span("agent"):
        with mlflow.start_span("asks") as first:
            client.post("/v1/chat/completions", json=body).raise_for_status()
        # LiteLLM caches an answer after it has sent it.
        wait_until_noticed(first, database)
        with mlflow.start_span("asks again") as second:
            client.post("/v1/chat/completions", json=body).raise_for_status()
    trace = mirrored(first, 2)
    asked, cached = mirrors_in(trace)
    assert_mirror(trace, asked, first, MINI)
    assert_mirror(trace, cached, second, [])
    assert cached.name == "gateway/chat"
    assert (asked.attributes["agent_gateway.cache.hit"], cached.attributes["agent_gateway.cache.hit"]) == (False, True)
    (attempt,) = children_of(trace, asked)
    assert trace.info.token_usage == attempt.attributes["mlflow.chat.tokenUsage"]
    assert trace.info.cost == attempt.attributes["mlflow.llm.cost"]


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4o-mini-fail-500"])
def test_a_pass_through_route(model: str, proxy: LiteLLMProxy):
    """A pass-through request is mirrored; its model is the caller's text, so it is recorded only after an answer."""
    with proxy.httpx_client() as client, mlflow.start_span("step") as step:
        answer = client.post("/raw/chat/completions", json={"model": model, **CHAT})
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    (attempt,) = children_of(trace, mirror)
    assert (mirror.parent_id, mirror.name) == (step.span_id, "gateway/pass_through_endpoint")
    assert_told(mirror.attributes, {"http.response.status_code": answer.status_code})
    assert mirror.status.status_code == attempt.status.status_code == ("OK" if answer.is_success else "ERROR")
    assert attempt.attributes.get("mlflow.llm.model") == (model if answer.is_success else None)


ASK = {"messages": [{"role": "user", "content": f"say {CANARY}"}]}
CLAIMED = {"model_group": CANARY, "deployment_model_name": CANARY, "model_info": {"id": CANARY}, CANARY: CANARY}
HEADERS = {"x-litellm-call-id": CANARY, "x-litellm-tags": CANARY}
CHAT_PATH = f"/v1/chat/completions?q={CANARY}"
SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "claims": (CHAT_PATH, {"model": "chat", "metadata": CLAIMED, "litellm_metadata": CLAIMED, "tags": [CANARY], **ASK}),
    "messages": ("/v1/messages", {"model": "claude", "max_tokens": 9, "metadata": {"user_id": CANARY}, **ASK}),
    "failing messages": ("/v1/messages", {"model": "failing-claude", "max_tokens": 9, **ASK}),
    "a wildcard's model that fails": (CHAT_PATH, {"model": f"any/{CANARY}-fail-500", **ASK}),
    "pass-through that fails": ("/raw/chat/completions", {"model": f"{CANARY}-fail-500", "metadata": CLAIMED, **ASK}),
    "pass-through to nowhere": (f"/raw/{CANARY}", {"model": CANARY, **ASK}),
}


@pytest.mark.parametrize("name", SAID)
def test_no_payload_is_stored(name: str, proxy: LiteLLMProxy, database: Database):
    """Text that a caller writes where LiteLLM keeps its own facts, and names that it can choose, are not stored."""
    path, body = SAID[name]
    with proxy.httpx_client(HEADERS) as client, mlflow.start_span("step") as step:
        answer = client.post(path, json=body)
    if "fail" in name:
        assert CANARY in answer.text, "the provider's error repeats the prompt"
    mirrored(step)
    rows = database.rows_of(step.trace_id)
    assert {"spans", "trace_info"} <= {row["table"] for row in rows}
    assert [row for row in rows if CANARY in json.dumps(row).lower()] == []


def test_a_caller_with_a_wrong_key(proxy: LiteLLMProxy, database: Database):
    """A caller whose key the proxy does not know cannot write into a trace."""
    body = {"model": "chat", **CHAT}
    with proxy.httpx_client() as client, mlflow.start_span("turned away") as stranger:
        answer = client.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer sk-wrong"})
    assert answer.is_client_error
    with proxy.httpx_client() as client, mlflow.start_span("served") as known:
        client.post("/v1/chat/completions", json=body).raise_for_status()
    mirrored(known)
    assert [row["name"] for row in database.spans(stranger.trace_id)] == ["turned away"]


def test_one_mirror_per_request(proxy: LiteLLMProxy):
    """Gemini's route is one request; a retry with the same x-litellm-call-id is a second one; a list is not a call."""
    gemini = {"contents": [{"role": "user", "parts": [{"text": "one two"}]}]}
    chosen = {"x-litellm-call-id": "chosen-by-the-caller"}
    with proxy.httpx_client() as client, mlflow.start_span("step") as step:
        assert client.post("/v1beta/models/chat:generateContent", json=gemini).status_code == 200
        assert client.post("/v1/chat/completions", json={"model": "failing", **CHAT}, headers=chosen).status_code == 500
        assert client.post("/v1/chat/completions", json={"model": "chat", **CHAT}, headers=chosen).status_code == 200
        client.get("/v1/batches", params={"model": "chat"})
    names = sorted((mirror.name, mirror.status.status_code) for mirror in mirrors_in(mirrored(step, 3)))
    assert names == [("gateway/chat", "OK"), ("gateway/chat", "OK"), ("gateway/failing", "ERROR")]
