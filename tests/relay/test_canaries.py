"""No payload passes through the relay, wherever a gateway puts it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_gateway_client.relay import facts, otlp_json, protobuf
from agent_gateway_client.relay.dialects import ALL_KEYS, NAMES
from agent_gateway_client.server.mirror import Convention, mirror
from tests.support.nightly import amount
from tests.support.otlp_spans import CALLER, CLIENT, REMOTE, SERVER, any_value, as_json, collected, request, span

EXAMPLES = amount(150, 10_000)
SECRET = "c4n4ry7f3a"
RECOGNISED = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "litellm.call_id": "1",
    "litellm.call_type": "acompletion",
    "llm.request.type": "chat",
    "openinference.span.kind": "LLM",
    "mlflow.spanType": '"CHAT_MODEL"',
    "gen_ai.latency.e2e": 1.0,
}
"""The attributes that make a span a model call, or a model server's part of one."""

sentences = st.sampled_from(
    [
        f"please say {SECRET}",
        f'{{"input_tokens": "{SECRET}", "{SECRET}": 1}}',
        f'["{SECRET} said"]',
        f'"{SECRET} and more"',
        f"{SECRET}\n{SECRET}",
        f"äöü {SECRET}",
        f"({SECRET})",
        f"{SECRET} " * 200,
    ]
)
"""Prompts, answers and error messages: texts that are not names."""

payload_keys = st.sampled_from(
    ["gen_ai.input.messages", "gen_ai.prompt.0.content", "input.value", "mlflow.spanInputs", "error.message", SECRET]
)
keys = st.sampled_from(sorted(ALL_KEYS)) | payload_keys
values = sentences | st.lists(sentences, min_size=1, max_size=3)
identity = st.dictionaries(st.sampled_from(sorted(RECOGNISED)), st.just(None), min_size=1)


@st.composite
def spans(draw: Any, span_id: int, parent_id: int, kind: int, flags: int) -> Span:
    """Return a span with the secret in every text that it has."""
    told = {**draw(st.dictionaries(keys, values, max_size=8)), **{key: RECOGNISED[key] for key in draw(identity)}}
    made = span(
        span_id,
        parent_id,
        draw(sentences | st.sampled_from([f"gateway/{SECRET} x", f"provider/{SECRET} x", "llm_request"])),
        kind=kind,
        flags=flags,
        attributes=told,
        failed=draw(st.booleans()),
        message=SECRET,
    )
    made.trace_state = f"a={SECRET}"
    event = made.events.add(name=SECRET)
    event.attributes.add(key=SECRET, value=any_value(draw(sentences)))
    link = made.links.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, trace_state=f"a={SECRET}")
    link.attributes.add(key=SECRET, value=any_value(draw(sentences)))
    return made


@st.composite
def requests(draw: Any) -> ExportTraceServiceRequest:
    """Return a gateway's part of a trace, with the secret in its resource and scope too."""
    made = [draw(spans(1, CALLER, SERVER, REMOTE)), draw(spans(2, 1, CLIENT, 0x100)), draw(spans(3, 2, SERVER, REMOTE))]
    names = st.sampled_from([SECRET, "agent-gateway", "agent-gateway-client", "fastapi"])
    sent = request(made, service=draw(names), scope=draw(names), served_model=draw(sentences))
    for resource_spans in sent.resource_spans:
        resource_spans.schema_url = SECRET
        resource_spans.resource.attributes.add(key=SECRET, value=any_value(SECRET))
        for scope_spans in resource_spans.scope_spans:
            scope_spans.scope.version = SECRET
            scope_spans.scope.attributes.add(key=SECRET, value=any_value(SECRET))
    return sent


def written(sent: ExportTraceServiceRequest) -> bytes:
    """Return everything written for a request, in both conventions and from both encodings."""
    bounds: Any = (ALL_KEYS, NAMES, 100, 100)
    batches = protobuf.read_request(sent.SerializeToString(), *bounds), otlp_json.read_request(as_json(sent), *bounds)
    calls = [call for batch in batches for call in collected(batch.spans)]
    found = [encode_spans(mirror(call, convention)).SerializeToString() for call in calls for convention in Convention]
    return b"".join(found)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests())
def test_nothing_that_was_said_gets_through(sent: ExportTraceServiceRequest):
    """The secret is in every attribute, event, link, status, resource and scope, and in nothing that is written."""
    assert SECRET.encode() in sent.SerializeToString()
    assert SECRET.encode() not in written(sent)


def test_mirrors_are_made_of_it():
    """The search covers something: such spans do become mirrors."""
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "error.type": f"{SECRET} x"}
    made = [span(1, CALLER, kind=SERVER, flags=REMOTE), span(2, 1, kind=CLIENT, attributes=attributes, failed=True)]
    assert b"provider/openai" in written(request(made))


def test_a_planted_leak_is_found(monkeypatch: pytest.MonkeyPatch):
    """If texts were copied unchanged, the search would find the secret."""
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": f"please say {SECRET}"}
    made = [span(1, CALLER, kind=SERVER, flags=REMOTE), span(2, 1, kind=CLIENT, attributes=attributes)]
    assert SECRET.encode() not in written(request(made))
    monkeypatch.setattr(facts.Facts, "name", facts.Facts.value)
    assert SECRET.encode() in written(request(made))
