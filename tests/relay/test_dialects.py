"""Every dialect yields the same call."""

import json
from typing import Any

import pytest

from agent_gateway_client.relay.dialects import ALL_KEYS, DIALECTS
from agent_gateway_client.server.call import Attempt, Cost, TokenUsage
from tests.support.otlp_spans import CALLER, CLIENT, TRACE, collected, read, root, span, the_call

NEWEST = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.usage.input_tokens": 10,
    "gen_ai.usage.output_tokens": 5,
    "gen_ai.usage.cache_read.input_tokens": 4,
    "gen_ai.response.finish_reasons": ["stop"],
}
OLD = {
    "gen_ai.operation.name": "chat",
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.usage.prompt_tokens": 10,
    "gen_ai.usage.completion_tokens": 5,
    "gen_ai.response.finish_reasons": ["stop"],
}
OPENLLMETRY = {
    "llm.request.type": "chat",
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.usage.input_tokens": 10,
    "gen_ai.usage.output_tokens": 5,
    "llm.usage.total_tokens": 15,
    "llm.is_streaming": False,
    "llm.response.finish_reason": "stop",
}
OPENINFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.provider": "openai",
    "llm.model_name": "gpt-4o-mini",
    "llm.token_count.prompt": 10,
    "llm.token_count.completion": 5,
    "llm.token_count.prompt_details.cache_read": 4,
    "llm.finish_reason": "stop",
}
LITELLM_V1 = {
    "litellm.call_id": "6a29ef4a",
    "litellm.model_group": "chat",
    "litellm.provider.model": "openai/gpt-4o-mini",
    "llm.request.type": "acompletion",
    "gen_ai.operation.name": "acompletion",
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.usage.input_tokens": 10,
    "gen_ai.usage.output_tokens": 5,
    "gen_ai.usage.total_tokens": 15,
    "gen_ai.cost.input_cost": 0.25,
    "gen_ai.cost.output_cost": 0.5,
    "gen_ai.cost.total_cost": 0.75,
    "llm.is_streaming": "False",
    "gen_ai.response.finish_reasons": '["stop"]',
}
LITELLM_V2 = {
    **NEWEST,
    "gen_ai.request.model": "chat",
    "litellm.provider.model": "openai/gpt-4o-mini",
    "litellm.call_type": "acompletion",
    "litellm.cost.input": 0.25,
    "litellm.cost.output": 0.5,
    "litellm.cost.total": 0.75,
}
MLFLOW = {
    "mlflow.spanType": '"CHAT_MODEL"',
    "mlflow.llm.provider": '"openai"',
    "mlflow.llm.model": '"gpt-4o-mini"',
    "mlflow.chat.tokenUsage": json.dumps({"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}),
    "mlflow.llm.cost": json.dumps({"input_cost": 0.25, "output_cost": 0.5, "total_cost": 0.75}),
}
SAMPLES = {
    "newest": NEWEST,
    "old": OLD,
    "OpenLLMetry": OPENLLMETRY,
    "OpenInference": OPENINFERENCE,
    "LiteLLM v1": LITELLM_V1,
    "LiteLLM v2": LITELLM_V2,
    "MLflow": MLFLOW,
}


def attempt_in(attributes: dict[str, Any], **facts: Any) -> Attempt:
    """Return the attempt of a call whose only model call has these attributes."""
    call = the_call(root(), span(2, 1, attributes=attributes, kind=CLIENT, **facts))
    (attempt,) = call.attempts
    return attempt


@pytest.mark.parametrize("name", SAMPLES)
def test_every_dialect_tells_the_same(name: str):
    """Provider, model, operation and tokens are the same facts in each dialect."""
    call = the_call(root(), span(2, 1, attributes=SAMPLES[name], kind=CLIENT))
    (attempt,) = call.attempts
    # OpenInference has one word for chats and completions.
    assert call.operation == ("other" if name == "OpenInference" else "chat")
    assert (attempt.provider, attempt.model, attempt.error_type) == ("openai", "gpt-4o-mini", None)
    assert attempt.usage is not None
    assert (attempt.usage.input_tokens, attempt.usage.output_tokens) == (10, 5)
    assert attempt.finish_reason == (None if name == "MLflow" else "stop")
    assert attempt.span_id == 2


@pytest.mark.parametrize("name", ["LiteLLM v1", "LiteLLM v2", "MLflow"])
def test_costs(name: str):
    """The cost, if the gateway knows it."""
    assert attempt_in(SAMPLES[name]).cost == Cost(0.25, 0.5, 0.75)


@pytest.mark.parametrize("name", ["newest", "OpenInference"])
def test_cached_tokens(name: str):
    """Cached tokens are separate, by whichever name."""
    assert attempt_in(SAMPLES[name]).usage == TokenUsage(10, 5, None, 4, None)


@pytest.mark.parametrize("name", ["LiteLLM v1", "LiteLLM v2"])
def test_litellm_endpoint(name: str):
    """LiteLLM's model group is the endpoint, and its call type is the request type."""
    call = the_call(root(), span(2, 1, attributes=SAMPLES[name]))
    assert (call.endpoint, call.request_type) == ("chat", "acompletion")


def test_litellm_without_a_provider_is_not_an_attempt():
    """A model that LiteLLM does not know reaches no provider. The name is the caller's, and no mirror has it."""
    unknown = {**LITELLM_V1, "gen_ai.system": "", "litellm.provider.model": "nope", "gen_ai.request.model": "nope"}
    assert collected(read([root(failed=True), span(2, 1, attributes=unknown, failed=True)])) == []


@pytest.mark.parametrize("scope", ["fastapi", "litellm"])
@pytest.mark.parametrize("error", ["litellm.proxy._types.ProxyException", "ProxyException", "BudgetExceededError"])
@pytest.mark.parametrize("operation", ["acompletion", "chat"])
def test_what_litellm_refuses_is_not_an_attempt(operation: str, error: str, scope: str):
    """LiteLLM describes the call that a caller with a wrong key would have made. It leaves no mirror."""
    facts = {**LITELLM_V1, "gen_ai.operation.name": operation, "error.type": error, "http.response.status_code": 400}
    spans = [root(failed=True), span(2, 1, "fastapi.dependencies", attributes=facts, failed=True)]
    assert collected(read(spans, scope=scope)) == []


def test_spans_of_fastapi_are_not_attempts():
    """They are not model calls, whatever attributes other code adds to them."""
    spans = [root(), span(2, 1, "fastapi.dependencies", attributes=NEWEST)]
    assert collected(read(spans, scope="fastapi")) == []


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"http.response.status_code": 503, "error.type": "ServiceUnavailableError"}, "503"),
        ({"litellm.provider.error.code": "429", "error.type": "RateLimitError"}, "429"),
        ({"error.type": "ReadError"}, "ReadError"),
        ({"error.type": "the prompt was: hello"}, "_OTHER"),
        ({}, "_OTHER"),
    ],
)
def test_errors(attributes: dict[str, Any], expected: str):
    """A failure is reported by its HTTP status or its class, never by a message."""
    assert attempt_in({**LITELLM_V2, **attributes}, failed=True, message="canary").error_type == expected


def test_a_failed_attempt_has_no_tokens_of_zero():
    """LiteLLM reports 0 tokens and a cost of 0 for a failed attempt. The true values are unknown and left out."""
    nothing = {"gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0, "litellm.cost.total": 0.0}
    attempt = attempt_in({**LITELLM_V2, **nothing, "gen_ai.usage.cache_read.input_tokens": 0}, failed=True)
    assert (attempt.usage, attempt.cost) == (None, None)


def test_a_failed_attempt_has_no_estimated_tokens():
    """LiteLLM counts the tokens of a stream that breaks off by itself; the provider has reported none."""
    estimated = {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 13, "litellm.cost.total": 0.1}
    attempt = attempt_in({**LITELLM_V2, **estimated, "error.type": "ReadError"}, failed=True)
    assert (attempt.usage, attempt.cost) == (None, None)


def test_the_answered_model_is_not_the_requested_name():
    """LiteLLM Proxy answers with the name that its caller asked for, whatever model the deployment has."""
    told = {**LITELLM_V2, "litellm.model_group": "chat", "litellm.provider.model": "openai/gpt-4o-mini"}
    assert attempt_in({**told, "gen_ai.response.model": "chat"}).response_model is None
    assert attempt_in({**told, "gen_ai.response.model": "gpt-4o-mini-2024"}).response_model == "gpt-4o-mini-2024"


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look_up"},
        {"gen_ai.operation.name": "invoke_agent", "gen_ai.request.model": "m", "gen_ai.provider.name": "openai"},
        {"openinference.span.kind": "CHAIN"},
        {"mlflow.spanType": '"AGENT"'},
        {"gen_ai.request.model": "only-a-model"},
    ],
)
def test_other_spans_are_not_calls(attributes: dict[str, Any]):
    """A span that is not a model call is not mirrored, whatever its name."""
    assert collected(read([root(), span(2, 1, "provider/openai/chat", attributes=attributes)])) == []


@pytest.mark.parametrize("sender", [{"service": "agent-gateway"}, {"scope": "agent-gateway-client"}], ids=str)
def test_the_companions_own_mirrors(sender: dict[str, str]):
    """A mirror that the companion sent over OTLP stays the same: ids, times, facts and link."""
    gateway = root(
        7,
        attributes={
            "agent_gateway.endpoint.name": "chat",
            "agent_gateway.endpoint.id": "e-1",
            "agent_gateway.request.type": "unified/chat",
            "gen_ai.operation.name": "chat",
            "server.address": "127.0.0.1",
            "server.port": 5000,
            "gen_ai.request.stream": True,
            "http.response.status_code": 200,
            "gen_ai.response.time_to_first_chunk": 0.5,
            "agent_gateway.cache.hit": False,
        },
    )
    gateway.links.add(trace_id=(11).to_bytes(16, "big"), span_id=(12).to_bytes(8, "big"))
    provider = span(
        8, 7, "provider/openai/gpt-4o-mini", kind=CLIENT, attributes={**NEWEST, "agent_gateway.cost.total": 0.75}
    )
    call = the_call(gateway, provider, **sender)
    assert (call.parent.trace_id, call.parent.span_id, call.span_id) == (TRACE, CALLER, 7)
    assert (call.endpoint, call.endpoint_id, call.request_type) == ("chat", "e-1", "unified/chat")
    assert (call.server_address, call.streaming, call.http_status) == ("127.0.0.1:5000", True, 200)
    assert (call.time_to_first_chunk_ns, call.cache_hit) == (500_000_000, False)
    assert call.linked is not None
    assert call.linked[:2] == (11, 12)
    (attempt,) = call.attempts
    assert (attempt.span_id, attempt.cost) == (8, Cost(None, None, 0.75))


def test_no_key_can_hold_a_payload():
    """The tables name facts only. Prompts, answers and error messages are in none of them."""
    payload = (
        "messages",
        "prompt.",
        "completion.",
        "input.value",
        "output.value",
        "spanInputs",
        "spanOutputs",
        "message",
    )
    assert not [key for key in ALL_KEYS if key.endswith(payload) or "instructions" in key or "metadata" in key]
    assert len({dialect.name for dialect in DIALECTS}) == len(DIALECTS)
