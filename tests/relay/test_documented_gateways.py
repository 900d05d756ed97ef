"""Gateways and model servers that are not run here: spans as their documentation and source describe them.

Envoy AI Gateway (OpenInference, one span per request), agentgateway (one SERVER span, no status), Bifrost (SERVER, then
CLIENT, without the flags for a remote parent), Kong (3.13), vLLM (``llm_request``).
"""

from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.otlp_spans import CALLER, CLIENT, ENGINE, INTERNAL, REMOTE, SERVER, UNKNOWN, span, the_call

GEN_AI = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.usage.input_tokens": 10,
    "gen_ai.usage.output_tokens": 5,
    "gen_ai.input.messages": "canary",
}
ENVOY = {
    "openinference.span.kind": "LLM",
    "llm.system": "openai",
    "llm.model_name": "gpt-4o-mini",
    "llm.token_count.prompt": 10,
    "llm.token_count.completion": 5,
    "input.value": "canary",
    "output.value": "canary",
    "llm.input_messages.0.message.content": "canary",
}
GATEWAYS: dict[str, list[Span]] = {
    "Envoy AI Gateway": [span(1, CALLER, "ChatCompletion", kind=INTERNAL, flags=REMOTE, attributes=ENVOY)],
    "agentgateway": [
        span(1, CALLER, "POST /*", kind=SERVER, flags=REMOTE, attributes={**GEN_AI, "http.status": 200}),
    ],
    "Bifrost": [
        span(1, CALLER, "/v1/chat/completions", kind=SERVER, flags=UNKNOWN),
        span(2, 1, "llm.call", kind=CLIENT, flags=UNKNOWN, attributes=GEN_AI),
    ],
    "Kong": [
        span(1, CALLER, "kong", kind=SERVER, flags=UNKNOWN, attributes={"http.status_code": 200}),
        span(2, 1, "kong.access.plugin.ai-proxy", flags=UNKNOWN),
        span(3, 1, "kong.gen_ai", flags=UNKNOWN, attributes=GEN_AI),
    ],
}


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_call(name: str):
    """There is one mirror below the caller's span, with one attempt that has model, provider and tokens."""
    call = the_call(*GATEWAYS[name])
    assert (call.parent.span_id, call.span_id, call.error_type) == (CALLER, 1, None)
    (attempt,) = call.attempts
    assert (attempt.provider, attempt.model) == ("openai", "gpt-4o-mini")
    assert attempt.usage is not None
    assert (attempt.usage.input_tokens, attempt.usage.output_tokens) == (10, 5)
    assert attempt.span_id != call.span_id
    assert "canary" not in repr(call)


@pytest.mark.parametrize("facts", [{"http.status": 503}, {"http.status": "503"}], ids=str)
def test_an_error_of_agentgateway(facts: dict[str, Any]):
    """Its spans have no status, so the HTTP status decides."""
    call = the_call(span(1, CALLER, kind=SERVER, flags=REMOTE, attributes={**GEN_AI, **facts}))
    assert (call.http_status, call.error_type, call.attempts[0].error_type) == (503, "503", "503")


def test_vllm_below_each():
    """vLLM continues the context that it receives, which is that of the gateway's attempt."""
    call = the_call(*GATEWAYS["Bifrost"], span(9, 2, "llm_request", kind=SERVER, flags=REMOTE, attributes=ENGINE))
    (run,) = call.engine_runs
    assert (run.parent_span_id, run.queue_seconds) == (2, 1.25)


def test_vllm_below_a_gateway_of_one_span():
    """The attempt's mirror has a derived id there, and the model server's mirror is below it."""
    call = the_call(*GATEWAYS["agentgateway"], span(9, 1, "llm_request", kind=SERVER, flags=REMOTE, attributes=ENGINE))
    assert [run.parent_span_id for run in call.engine_runs] == [call.attempts[0].span_id]
