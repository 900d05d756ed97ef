"""mirror.py: the closed vocabulary, and properties of the spans of any call."""

import ast
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import StatusCode

from agent_gateway_client import server
from agent_gateway_client.server.call import Attempt, Cost, EngineRun, GatewayCall, TokenUsage
from agent_gateway_client.server.mirror import MAX_NAME_LENGTH, Convention, mirror
from agent_gateway_client.w3c import TraceContext
from tests.support.server import attributes_of, full_call, ids_of
from tests.support.source import syntax_tree

VOCABULARY = {
    Convention.MLFLOW: {
        "mlflow.traceRequestId",
        "mlflow.spanType",
        "endpoint_id",
        "endpoint_name",
        "server_url",
        "mlflow.gateway.linkedTraceId",
        "mlflow.gateway.requestType",
        "gen_ai.request.stream",
        "http.response.status_code",
        "gen_ai.response.time_to_first_chunk",
        "agent_gateway.cache.hit",
        "error.type",
        "mlflow.llm.provider",
        "mlflow.llm.model",
        "gen_ai.response.model",
        "mlflow.chat.tokenUsage",
        "mlflow.llm.cost",
        "gen_ai.response.finish_reasons",
        "gen_ai.latency.time_in_queue",
        "gen_ai.latency.time_in_model_prefill",
        "gen_ai.latency.time_in_model_decode",
        "gen_ai.latency.time_to_first_token",
    },
    Convention.OTEL: {
        "agent_gateway.endpoint.id",
        "agent_gateway.endpoint.name",
        "server.address",
        "server.port",
        "mlflow.gateway.linkedTraceId",
        "agent_gateway.request.type",
        "gen_ai.operation.name",
        "gen_ai.request.stream",
        "http.response.status_code",
        "gen_ai.response.time_to_first_chunk",
        "agent_gateway.cache.hit",
        "error.type",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.response.model",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.reasoning.output_tokens",
        "agent_gateway.cost.total",
        "gen_ai.response.finish_reasons",
        "gen_ai.latency.time_in_queue",
        "gen_ai.latency.time_in_model_prefill",
        "gen_ai.latency.time_in_model_decode",
        "gen_ai.latency.time_to_first_token",
    },
}
"""All keys that a mirror span may have. No other key gets into a caller's trace."""

READ_ELSEWHERE = {
    # Read from MLflow's request state, and from the gateway's own spans; an abandoned one gets its error type.
    "mlflow_gateway/_app.py": {"endpoint_id"},
    "mlflow_gateway/_spans.py": {"endpoint_id", "endpoint_name", "error.type", "exception.type", "exception.message"},
    # An attribute of metrics too.
    "observed/metrics.py": {"error.type"},
}
"""Keys that other files of the companion contain for other purposes."""

MAKERS = {"ReadableSpan", "Resource", "Link", "Status", "set_attribute", "set_attributes", "add_event"}
"""Functions that create or change a span."""

SERVER = Path(server.__path__[0])

each_convention = pytest.mark.parametrize("convention", Convention)


def relative_to_server(path: Path) -> str:
    return path.relative_to(SERVER).as_posix()


@each_convention
def test_the_vocabulary_is_all_used_and_no_more(convention: Convention):
    """Calls with all facts, one with a trace of the gateway's own, use exactly the closed vocabulary."""
    run = EngineRun(0xD, "llama", 1.25, 0.5, 2.0, 1.75, start_time_ns=5_000, end_time_ns=7_000, error_type="Timeout")
    calls = full_call(engine_runs=[run]), full_call(linked=None)
    keys = {key for call in calls for span in mirror(call, convention) for key in attributes_of(span)}
    assert keys == VOCABULARY[convention]


@pytest.mark.parametrize("path", sorted(SERVER.glob("**/*.py")), ids=relative_to_server)
def test_attributes_are_named_in_one_place(path: Path):
    """Only mirror.py contains the keys of span attributes, so the vocabulary can be read and checked in one place."""
    if path.name == "mirror.py":
        return
    keys = VOCABULARY[Convention.MLFLOW] | VOCABULARY[Convention.OTEL]
    tree = syntax_tree(path)
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    namespaces = ("gen_ai.", "mlflow.llm.", "mlflow.gateway.", "mlflow.chat.", "exception.")
    named = {text for text in texts if text in keys or (text.startswith(namespaces) and " " not in text)}
    assert named == READ_ELSEWHERE.get(relative_to_server(path), set())
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {getattr(function, "id", getattr(function, "attr", None)) for function in called}
    assert not names & MAKERS, "spans are made in mirror.py"


text = st.none() | st.text(max_size=500)
number = st.integers(0, 2**62)
usages = st.none() | st.builds(TokenUsage, number, st.none() | number, st.none() | number, st.none() | number)
attempts = st.builds(
    Attempt,
    provider=text,
    model=text,
    start_time_ns=number,
    end_time_ns=st.none() | number,
    error_type=text,
    usage=usages,
    cost=st.none() | st.builds(Cost, *[st.none() | st.floats(0, 1e6)] * 2, st.floats(0, 1e6)),
    finish_reason=text,
    span_id=st.integers(1, 5),
)
seconds = st.none() | st.floats(0, 1e6)
engine_runs = st.builds(
    EngineRun,
    parent_span_id=st.integers(1, 5),
    model=text,
    queue_seconds=seconds,
    prefill_seconds=seconds,
    decode_seconds=seconds,
    first_token_seconds=seconds,
    start_time_ns=number,
    end_time_ns=number,
    error_type=text,
    span_id=st.integers(1, 5),
)
contexts = st.builds(
    TraceContext, st.integers(1, 2**128 - 1), st.integers(1, 5), st.just(1), st.sampled_from(["", "a=1"])
)
calls = st.builds(
    GatewayCall,
    parent=contexts,
    endpoint=text,
    endpoint_id=text,
    operation=st.sampled_from(["chat", "embeddings", "other"]),
    request_type=text,
    server_address=text,
    streaming=st.none() | st.booleans(),
    http_status=st.none() | st.integers(100, 599),
    time_to_first_chunk_ns=st.none() | number,
    cache_hit=st.none() | st.booleans(),
    start_time_ns=number,
    end_time_ns=st.none() | number,
    error_type=text,
    linked=st.none() | contexts,
    attempts=st.lists(attempts, max_size=5),
    span_id=st.integers(1, 5),
    engine_runs=st.lists(engine_runs, max_size=3),
)
"""Calls with any facts; ids from a small set, so that they often collide."""


@pytest.mark.slow
@settings(deadline=None)
@given(calls, st.sampled_from(Convention))
def test_whatever_a_call_holds(call: GatewayCall, convention: Convention):
    """Keys are in the vocabulary, texts bounded, ids unique, no span is its own parent, parents contain children."""
    spans = mirror(call, convention)
    root, children = spans[0], spans[1:]
    assert len(children) == len(call.attempts) + len(call.engine_runs)

    ids = [ids_of(span)[0] for span in spans]
    assert len(set(ids)) == len(ids)
    assert call.parent.span_id not in ids
    assert ids_of(root)[1] == call.parent.span_id
    attempts_made = children[: len(call.attempts)]
    assert {ids_of(span)[1] for span in attempts_made} <= {ids[0]}
    assert all(ids_of(span)[0] != ids_of(span)[1] for span in spans)
    assert {span.context.trace_id for span in spans if span.context} == {call.parent.trace_id}

    for span in spans:
        assert set(attributes_of(span)) <= VOCABULARY[convention]
        assert len(span.name) <= len("provider//") + 2 * MAX_NAME_LENGTH
        for value in [span.name, *attributes_of(span).values()]:
            if isinstance(value, str):
                assert value.isascii()
                assert value.isprintable()
                assert len(value) <= 2 * MAX_NAME_LENGTH + 100
        assert span.start_time is not None
        assert span.end_time is not None
        assert root.start_time is not None
        assert root.end_time is not None
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time
        assert span.status.description is None
        for event in span.events:
            assert (event.name, set(event.attributes or {})) == ("exception", {"exception.type"})
    below = [*call.attempts, *call.engine_runs]
    failed = [call.error_type is not None, *(one.error_type is not None for one in below)]
    assert [span.status.status_code is StatusCode.ERROR for span in spans] == failed
