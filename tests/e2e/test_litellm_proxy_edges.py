"""A real LiteLLM Proxy with the one config line: clients that hang up, many at once, privacy, no mirror, the cache."""

import asyncio
import http.client
import json
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import mlflow
import pytest
from e2e.litellm_proxy import MASTER_KEY, LiteLLMProxy, configuration
from e2e_support import CHAT, USER, Database, assert_mirror, children_of, mirrored, mirrors_in, wait_for
from mlflow.entities import Span

from agent_gateway_client.demo.gateway import DemoGateway

CANARY = "c4n4ry7f3a"
MINI = [("openai/gpt-4o-mini", "OK")]


@pytest.fixture(scope="module")
def proxy(gateway: DemoGateway, tracing: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteLLMProxy]:
    """A proxy in front of the gateway's model provider, whose mirrors go to the gateway's MLflow."""
    config = configuration(gateway.provider.url)
    config["general_settings"]["cancel_on_disconnect"] = True
    with LiteLLMProxy(tmp_path_factory.mktemp("litellm"), config, MLFLOW_TRACKING_URI=gateway.tracking_uri) as proxy:
        yield proxy


def wait_until_noticed(step: Span, database: Database) -> None:
    """Keep the caller's span open until its mirror is there, as an agent does that goes on with something else."""
    wait_for("the mirror", lambda: database.spans(step.trace_id))


LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "responses": ("/v1/responses", {"input": "one two"}),
    "messages": ("/v1/messages", {"max_tokens": 9, **CHAT}),
}
"""Streams that take five seconds."""


@pytest.mark.parametrize("name", LONG)
def test_a_client_that_hangs_up_in_a_stream(name: str, proxy: LiteLLMProxy, database: Database):
    """The mirror of a call whose client closed the connection mid-stream is there, ended and marked."""
    path, body = LONG[name]
    with proxy.httpx_client() as client, mlflow.start_span("step") as step:
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
    assert mirror.attributes["http.response.status_code"] == 200
    assert mirror.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert not trace.info.token_usage


def test_a_client_that_hangs_up_before_the_answer(proxy: LiteLLMProxy, database: Database):
    """With LiteLLM's cancel_on_disconnect, a client that does not wait for its answer is told from a failure."""
    with proxy.httpx_client() as client, mlflow.start_span("step") as step:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json={"model": "slow", **CHAT}, timeout=0.5)
        wait_until_noticed(step, database)
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    (attempt,) = assert_mirror(trace, mirror, step, [("openai/gpt-4o-mini-slow", "ERROR")])
    assert mirror.attributes["error.type"] == attempt.attributes["error.type"] == "client_disconnect"


def test_a_client_that_stops_reading_at_the_last_event(proxy: LiteLLMProxy, database: Database):
    """Anthropic's clients close the connection at message_stop; that is no hang-up."""
    body = {"model": "claude", "max_tokens": 9, "stream": True, **CHAT}
    with proxy.httpx_client() as client, mlflow.start_span("step") as step:
        with client.stream("POST", "/v1/messages", json=body) as answer:
            assert any(line == "event: message_stop" for line in answer.iter_lines())
        wait_until_noticed(step, database)
    (mirror,) = mirrors_in(mirrored(step))
    assert mirror.status.status_code == "OK"


def test_an_agent_that_fans_out(proxy: LiteLLMProxy):
    """50 concurrent calls under one trace are 50 mirrors, each under its own call's span, with its own attempts."""

    async def run() -> list[Span]:
        async with proxy.async_openai_client() as client:

            async def call(number: int) -> Span:
                with mlflow.start_span(f"call {number}") as span:
                    model = "fallback" if number % 5 == 0 else "chat"
                    answer: Any = await client.chat.completions.create(
                        model=model, messages=[USER], stream=number % 2 == 0
                    )
                    if number % 2 == 0:
                        async for _ in answer:
                            pass
                return span

            with mlflow.start_span("fan out"):
                return await asyncio.gather(*map(call, range(50)))

    steps = asyncio.run(run())
    trace = mirrored(steps[0], len(steps))
    by_parent = {mirror.parent_id: mirror for mirror in mirrors_in(trace)}
    assert len(mirrors_in(trace)) == len(by_parent) == len(steps)
    for number, step in enumerate(steps):
        failed = [("openai/gpt-4o-fail-503", "ERROR")] if number % 5 == 0 else []
        assert_mirror(trace, by_parent[step.span_id], step, failed + MINI)
    used = [
        span.attributes["mlflow.chat.tokenUsage"]
        for span in trace.data.spans
        if "mlflow.chat.tokenUsage" in span.attributes
    ]
    assert [tokens["input_tokens"] for tokens in used] == [3] * len(steps)


@pytest.mark.parametrize("stream", [False, True], ids=["at once", "streamed"])
def test_an_answer_from_the_cache(stream: bool, proxy: LiteLLMProxy, database: Database):
    """A call that LiteLLM answers from its cache has no provider attempt, costs nothing, and says so."""
    question = {"role": "user", "content": secrets.token_hex(8)}
    body = {"model": "chat", "messages": [question], "stream": stream, "cache": {"use-cache": True}}
    with proxy.httpx_client() as client, mlflow.start_span("agent"):
        with mlflow.start_span("asks") as first:
            client.post("/v1/chat/completions", json=body).raise_for_status()
        # LiteLLM keeps an answer after it has sent it.
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
    """A request that LiteLLM hands on as it is has a mirror; its model is the caller's text until it has answered."""
    with proxy.httpx_client() as client, mlflow.start_span("step") as step:
        answer = client.post("/raw/chat/completions", json={"model": model, **CHAT})
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    (attempt,) = children_of(trace, mirror)
    assert (mirror.parent_id, mirror.name) == (step.span_id, "gateway/pass_through_endpoint")
    assert mirror.attributes["http.response.status_code"] == answer.status_code
    assert mirror.status.status_code == attempt.status.status_code == ("OK" if answer.is_success else "ERROR")
    assert attempt.attributes.get("mlflow.llm.model") == (model if answer.is_success else None)


ASK = {"messages": [{"role": "system", "content": CANARY}, {"role": "user", "content": f"say {CANARY}"}]}
TOOL = {"name": f"look_up_{CANARY}", "description": CANARY, "parameters": {"type": "object", "properties": {}}}
CLAIMED = {"model_group": CANARY, "deployment_model_name": CANARY, "model_info": {"id": CANARY}, CANARY: CANARY}
HEADERS = {
    "x-canary": CANARY,
    CANARY: "1",
    "user-agent": CANARY,
    "cookie": f"session={CANARY}",
    "baggage": f"user={CANARY}",
    "x-litellm-call-id": CANARY,
    "x-litellm-tags": CANARY,
}
CHAT_PATH = f"/v1/chat/completions?q={CANARY}"
SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT_PATH, {"model": "chat", "user": CANARY, "metadata": CLAIMED, "tags": [CANARY], **ASK}),
    "tools": (CHAT_PATH, {"model": "chat", "tools": [{"type": "function", "function": TOOL}], **ASK}),
    "stream": (CHAT_PATH, {"model": "chat", "stream": True, **ASK}),
    "fallback": (CHAT_PATH, {"model": "fallback", **ASK}),
    "failing": (CHAT_PATH, {"model": "failing", **ASK}),
    "broken": (CHAT_PATH, {"model": "broken", "stream": True, **ASK}),
    "embeddings": ("/v1/embeddings", {"model": "embeddings", "input": [CANARY]}),
    "responses": ("/v1/responses", {"model": "chat", "input": CANARY, "instructions": CANARY}),
    "messages": ("/v1/messages", {"model": "claude", "max_tokens": 9, "metadata": {"user_id": CANARY}, **ASK}),
    "failing messages": ("/v1/messages", {"model": "failing-claude", "max_tokens": 9, **ASK}),
    "no such model": (CHAT_PATH, {"model": CANARY, **ASK}),
    "a wildcard's model that fails": (CHAT_PATH, {"model": f"any/{CANARY}-fail-500", **ASK}),
    "invalid": (CHAT_PATH, {"model": "chat", "messages": CANARY, CANARY: CANARY}),
    "pass-through that fails": ("/raw/chat/completions", {"model": f"{CANARY}-fail-500", "metadata": CLAIMED, **ASK}),
    "pass-through to nowhere": (f"/raw/{CANARY}", {"model": CANARY, **ASK}),
}


@pytest.mark.parametrize("name", SAID)
def test_no_payload_is_stored(name: str, proxy: LiteLLMProxy, database: Database):
    """Whatever the caller, the model or an error says, nothing of it is stored in the caller's trace."""
    path, body = SAID[name]
    with proxy.httpx_client(HEADERS) as client, mlflow.start_span("step") as step:
        answer = client.post(path, json=body)
    if "fail" in name:
        assert CANARY in answer.text, "the provider's error repeats the prompt"
    mirrored(step)
    rows = database.rows_of(step.trace_id)
    assert {"spans", "trace_info"} <= {row["table"] for row in rows}
    assert [row for row in rows if CANARY in json.dumps(row).lower()] == []


def test_the_provider_does_not_receive_the_callers_context(proxy: LiteLLMProxy, gateway: DemoGateway):
    """LiteLLM hands some of its callers' headers on, if it is told to, but not the trace context."""
    gateway.provider.clear()
    with proxy.httpx_client({"x-kept": "1", "baggage": "user=1"}) as client, mlflow.start_span("step"):
        for path, body in [*SAID.values()][:9]:
            client.post(path, json=body)
    received = gateway.provider.requests
    assert {request.header("x-kept") == ["1"] for request in received} == {True}
    for name in ("traceparent", "tracestate", "baggage"):
        assert {len(request.header(name)) for request in received} == {0}


RIGHT = "00-{trace}-{span}-01"
HEADER_LINES: dict[str, tuple[list[tuple[str, str]], bool]] = {
    "right": ([("traceparent", RIGHT)], True),
    "in capitals": ([("TRACEPARENT", RIGHT)], True),
    "none": ([], False),
    "unsampled": ([("traceparent", "00-{trace}-{span}-00")], False),
    "invalid": ([("traceparent", "00-{trace}-0000000000000000-01")], False),
    "text": ([("traceparent", "{trace}")], False),
    "invalid tracestate": ([("traceparent", RIGHT), ("tracestate", "no member")], False),
    "oversized tracestate": ([("traceparent", RIGHT), ("tracestate", "a=" + "b" * 10_000)], False),
    "wrong key": ([("traceparent", RIGHT), ("authorization", "Bearer sk-wrong")], False),
}


def send(proxy: LiteLLMProxy, lines: list[tuple[str, str]]) -> str:
    """Send a call with header lines as they are; returns the id that its trace would have."""
    trace_id, body = secrets.token_hex(16), json.dumps({"model": "chat", **CHAT}).encode()
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=60)
    connection.putrequest("POST", "/v1/chat/completions")
    given = {name.lower() for name, _ in lines}
    for name, value in [("authorization", f"Bearer {MASTER_KEY}"), ("content-type", "application/json")]:
        if name not in given:
            connection.putheader(name, value)
    connection.putheader("content-length", str(len(body)))
    for name, value in lines:
        connection.putheader(name, value.format(trace=trace_id, span=secrets.token_hex(8)))
    connection.endheaders(body)
    answer = connection.getresponse()
    assert (answer.status == 200) is ("authorization" not in given)
    answer.read()
    connection.close()
    return f"tr-{trace_id}"


def test_which_requests_are_mirrored(proxy: LiteLLMProxy, database: Database):
    """Only a valid, sampled traceparent of a caller whom the proxy knows makes a mirror."""
    sent = {name: send(proxy, lines) for name, (lines, _) in HEADER_LINES.items()}
    # The exporter sends in order: when this one's mirror is there, no earlier one is still to come.
    last = send(proxy, HEADER_LINES["right"][0])
    wait_for("the last mirror", lambda: database.spans(last))
    found = {name: bool(database.spans(trace_id)) for name, trace_id in sent.items()}
    assert found == {name: is_mirrored for name, (_, is_mirrored) in HEADER_LINES.items()}
