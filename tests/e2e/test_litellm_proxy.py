"""Particulars of a LiteLLM Proxy: kinds of calls, retries, fallbacks and rejections, and their mirrors.

Checks for every gateway are in ``test_gateways.py``.
"""

from typing import Any, NamedTuple

import httpx
import mlflow
import pytest
from mlflow.entities import Span

from tests.support.e2e import CHAT, assert_mirror, children_of, mirrored, mirrors_in
from tests.support.litellm_proxy import MASTER_KEY, LiteLLMProxy
from tests.support.routes import reported_usage
from tests.support.server import assert_told

MINI = [("openai/gpt-4o-mini", None)]
CLAUDE = [("anthropic/claude-3-5-haiku-20241022", None)]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
MESSAGE: dict[str, Any] = {"max_tokens": 99, **CHAT}
STREAM = {"stream": True}


class Mode(NamedTuple):
    """A request, and the facts of its mirror.

    Attributes:
        path: The route.
        body: The request's body.
        request_type: LiteLLM's name for the kind of call.
        attempts: ``provider/model`` of each attempt, and its error type.
        error: The call's error type.
        status: The HTTP status.
        finished: The finish reason.
        priced: Whether LiteLLM knows the price.
        named: The mirror's endpoint, if it is not the requested model.
    """

    path: str
    body: dict[str, Any]
    request_type: str
    attempts: list[tuple[str, str | None]]
    error: str | None = None
    status: int = 200
    finished: str | None = "stop"
    priced: bool = True
    named: str | None = None


def chat(model: str, attempts: list[tuple[str, str | None]], **more: Any) -> Mode:
    """Return a chat completion."""
    facts = {name: more.pop(name) for name in Mode._fields if name in more}
    return Mode("/v1/chat/completions", {"model": model, **CHAT, **more}, "acompletion", attempts, **facts)


def messages(model: str, attempts: list[tuple[str, str | None]], **more: Any) -> Mode:
    """Return a request in Anthropic's format."""
    facts = {name: more.pop(name) for name in Mode._fields if name in more}
    return Mode("/v1/messages", {"model": model, **MESSAGE, **more}, "anthropic_messages", attempts, **facts)


def failing(mode: Mode, status: int, error: str | None = None) -> Mode:
    """Return a mode that fails with this HTTP status."""
    return mode._replace(status=status, error=error or str(status), finished=None)


FAILED_500 = ("openai/gpt-4o-mini-fail-500", "500")
FAILED_502 = ("openai/gpt-4o-fail-502", "502")
FAILED_503 = ("openai/gpt-4o-fail-503", "503")
FAILED_CLAUDE = ("anthropic/claude-fail-500", "500")
CUT = ("openai/gpt-4o-mini-broken-long-20", "ReadError")
MODES = {
    "tools": chat("chat", MINI, tools=TOOLS, finished="tool_calls"),
    "cached tokens": chat("cached", [("openai/gpt-4o-mini-cached", None)], priced=False),
    "messages": messages("claude", CLAUDE, priced=False),
    "messages stream": messages("claude", CLAUDE, stream=True, priced=False),
    "messages of OpenAI": messages("chat", MINI),
    "messages stream of OpenAI": messages("chat", MINI, stream=True),
    "text completion": Mode("/v1/completions", {"model": "chat", "prompt": "one two"}, "atext_completion", MINI),
    "moderation": Mode(
        "/v1/moderations", {"model": "chat", "input": "one two"}, "amoderation", MINI, finished=None, priced=False
    ),
    "two fallbacks": chat("two-fallbacks", [FAILED_503, FAILED_500, *MINI]),
    "retries, then another deployment": chat("retried", [FAILED_502, FAILED_502, *MINI], num_retries=1),
    "a wildcard's model": chat("any/gpt-4o-mini", MINI, named="any/*"),
    "failing responses": failing(
        Mode("/v1/responses", {"model": "failing", "input": "one two"}, "aresponses", [FAILED_500]), 500
    ),
    "failing messages": failing(messages("failing-claude", [FAILED_CLAUDE]), 500),
    "failing retries": failing(chat("failing", [FAILED_500] * 3, num_retries=2), 500),
    "rate limited": failing(chat("limited", [("openai/gpt-4o-mini-fail-429", "429")]), 429),
    "refused by the proxy": failing(Mode("/v1/chat/completions", {"model": "chat"}, "acompletion", []), 400),
    "refused by a guardrail": failing(
        chat("chat", [], messages=[{"role": "user", "content": "forbidden"}], guardrails=["words"]), 400
    ),
    "no such model": failing(chat("made up by the caller", [], named="acompletion"), 400),
    "broken stream of messages": failing(messages("cut", [CUT], stream=True), 200, "ReadError"),
}


@pytest.fixture(scope="module")
def made(litellm_proxy: LiteLLMProxy, tracing: str) -> dict[str, tuple[Span, httpx.Response]]:
    """Each call, made in its own trace: the caller's span, and the answer."""
    with litellm_proxy.httpx_client() as client:
        return {name: call(client, mode) for name, mode in MODES.items()}


def call(client: httpx.Client, mode: Mode) -> tuple[Span, httpx.Response]:
    """Make a call, again if LiteLLM itself has failed after the model's answer.

    LiteLLM sometimes iterates over a request's metadata while its logging thread adds to them, which turns an answer
    into a 500. https://github.com/BerriAI/litellm/pull/39869 has fixed that in other places than OpenAI's messages.
    """
    for _ in range(5):
        with mlflow.start_span("step") as step:
            answer = client.post(mode.path, json=mode.body)
        if "dictionary changed size during iteration" not in answer.text:
            break
    return step, answer


@pytest.mark.parametrize("name", MODES)
def test_a_call(name: str, made: dict[str, tuple[Span, httpx.Response]]):
    """Its mirror has the actual attempts with their errors, and the answer's tokens, which count once."""
    mode, (step, answer) = MODES[name], made[name]
    assert answer.status_code == mode.status, answer.text
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    attempts = assert_mirror(
        trace, mirror, step, [(model, "ERROR" if error else "OK") for model, error in mode.attempts]
    )
    assert [span.attributes.get("error.type") for span in attempts] == [error for _, error in mode.attempts]
    facts = mirror.attributes
    assert mirror.name == f"gateway/{mode.named or mode.body['model']}"
    assert mirror.status.status_code == ("ERROR" if mode.error else "OK")
    streamed = "stream" in mode.body
    assert_told(facts, {"error.type": mode.error, "http.response.status_code": mode.status})
    assert facts["mlflow.gateway.requestType"] == mode.request_type
    assert_told(facts, {"gen_ai.request.stream": streamed})
    assert ("gen_ai.response.time_to_first_chunk" in facts) is streamed
    if mode.error:
        assert not trace.info.token_usage
        return
    answered = children_of(trace, mirror)[-1]
    assert_told(answered.attributes, {"gen_ai.response.finish_reasons": [mode.finished] if mode.finished else None})
    assert trace.info.cost == answered.attributes.get("mlflow.llm.cost")
    assert (trace.info.cost is not None) is mode.priced
    usage = trace.info.token_usage or {}
    reported = reported_usage(answer.content)
    # Before it asks the provider, LiteLLM starts a stream of messages with a usage of zero.
    if reported.get("input_tokens"):
        assert {kind: usage[kind] for kind in reported} == reported
    assert usage.get("cache_read_input_tokens", 0) == (1 if name == "cached tokens" else 0)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_who_may_not_join_is_served_without_a_mirror(stream: bool, litellm_proxy: LiteLLMProxy, tracing: str):
    """The predicate in AGENT_GATEWAY_MAY_JOIN decides only about the mirror."""
    body = {"model": "chat", "stream": stream, **CHAT}
    with mlflow.start_span("step") as step, litellm_proxy.httpx_client() as client:
        for tenant in ("theirs", "ours"):
            with mlflow.start_span(tenant):
                answer = client.post("/v1/chat/completions", json=body, headers={"x-tenant": tenant})
            assert answer.status_code == 200
    trace = mirrored(step)
    (ours,) = [span for span in trace.data.spans if span.name == "ours"]
    assert [mirror.parent_id for mirror in mirrors_in(trace)] == [ours.span_id]


def test_the_status_is_open_to_keys(litellm_proxy: LiteLLMProxy):
    """Only callers with a key may read it; the worker's first line is in LiteLLM's log, in its format."""
    url = f"{litellm_proxy.url}/agent-gateway/status"
    for headers in ({}, {"Authorization": "Bearer sk-not-a-key-of-this-proxy"}):
        answer, models = httpx.get(url, headers=headers), httpx.get(f"{litellm_proxy.url}/v1/models", headers=headers)
        # A proxy without its database packages answers 500.
        assert (answer.status_code, answer.is_error) == (models.status_code, True)
        assert "destination" not in answer.text
    told = httpx.get(url, headers={"Authorization": f"Bearer {MASTER_KEY}"})
    assert told.status_code == 200
    assert told.json()["may_join"] == "tests.support.tenants:may_join"
    assert told.json()["destination"].startswith("MLflow at http://127.0.0.1:")
    (line,) = [line for line in litellm_proxy.log().splitlines() if "calls are mirrored to MLflow at" in line]
    assert line.startswith("INFO:")
