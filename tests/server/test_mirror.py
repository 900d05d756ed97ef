"""mirror.py: the spans of a call's mirror."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from agent_gateway_client.server.call import MAX_COUNT, Attempt, Cost, GatewayCall, TokenUsage
from agent_gateway_client.server.mirror import MAX_NAME_LENGTH, Convention, _reports_usage, mirror
from agent_gateway_client.w3c import TraceContext
from tests.support.server import (
    PARENT,
    SPAN_ID,
    TRACE_ID,
    attributes_of,
    facts_of,
    full_call,
    ids_of,
    plain_attempt,
    plain_call,
    small_call,
)

each_convention = pytest.mark.parametrize("convention", Convention)


def test_what_mlflow_is_told():
    """Names and values follow MLflow's convention, as its UI and its totals of tokens and cost read them."""
    gateway, failed, answered = mirror(full_call(), Convention.MLFLOW)
    trace_id = f"tr-{TRACE_ID:032x}"
    assert gateway.name == "gateway/chat"
    assert facts_of(gateway) == {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": "LLM",
        "endpoint_id": "e-1",
        "endpoint_name": "chat",
        "server_url": "127.0.0.1:5000",
        "mlflow.gateway.linkedTraceId": "tr-0000000000000000000000000000000b",
        "gen_ai.request.stream": True,
        "http.response.status_code": 206,
        "gen_ai.response.time_to_first_chunk": 1.5,
        "agent_gateway.cache.hit": False,
        "error.type": "ClientPayloadError",
    }
    assert failed.name == "provider/openai/gpt-4o"
    assert facts_of(failed) == {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": "LLM",
        "mlflow.llm.provider": "openai",
        "mlflow.llm.model": "gpt-4o",
        "error.type": "503",
    }
    assert answered.name == "provider/anthropic/claude-3-5-haiku"
    assert facts_of(answered) == {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": "LLM",
        "mlflow.llm.provider": "anthropic",
        "mlflow.llm.model": "claude-3-5-haiku",
        "gen_ai.response.model": "claude-3-5-haiku-20241022",
        "mlflow.chat.tokenUsage": {
            "input_tokens": 10,
            "output_tokens": 5,
            "total_tokens": 15,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 2,
        },
        "mlflow.llm.cost": {"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.3},
        "gen_ai.response.finish_reasons": ["length"],
    }


def facts_for_mlflow(call: GatewayCall) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return MLflow's attributes for a call with one attempt: the call's and the attempt's."""
    gateway, attempt = mirror(call, Convention.MLFLOW)
    return facts_of(gateway), facts_of(attempt)


def test_what_goes_without_saying_for_mlflow():
    """For a plain call MLflow stores nothing that holds for nearly every call or that the gateway's own trace has."""
    trace_id = f"tr-{TRACE_ID:032x}"
    assert facts_for_mlflow(plain_call()) == (
        {
            "mlflow.traceRequestId": trace_id,
            "mlflow.spanType": "LLM",
            "endpoint_id": "e-1",
            "endpoint_name": "chat",
            "server_url": "127.0.0.1:5000",
            "mlflow.gateway.linkedTraceId": "tr-0000000000000000000000000000000b",
        },
        {
            "mlflow.traceRequestId": trace_id,
            "mlflow.spanType": "LLM",
            "mlflow.llm.provider": "openai",
            "mlflow.llm.model": "gpt-4o-mini",
            "mlflow.chat.tokenUsage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
            "mlflow.llm.cost": {"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.3},
        },
    )


def test_nothing_goes_without_saying_for_opentelemetry():
    """Over OTLP a plain call has all known facts: back ends count and group by these attributes."""
    gateway, attempt = mirror(plain_call(), Convention.OTEL)
    assert attributes_of(gateway) == {
        "agent_gateway.endpoint.id": "e-1",
        "agent_gateway.endpoint.name": "chat",
        "server.address": "127.0.0.1",
        "server.port": 5000,
        "mlflow.gateway.linkedTraceId": "tr-0000000000000000000000000000000b",
        "agent_gateway.request.type": "unified/chat",
        "gen_ai.request.stream": False,
        "http.response.status_code": 200,
    }
    facts = attributes_of(attempt)
    assert list(facts["gen_ai.response.finish_reasons"]) == ["stop"]
    assert facts["gen_ai.usage.cache_read.input_tokens"] == 0
    assert facts["gen_ai.usage.cache_write.input_tokens"] == 0


@pytest.mark.parametrize(
    ("facts", "said", "unsaid"),
    [
        ({"streaming": True}, {"gen_ai.request.stream": True}, set()),
        ({"http_status": 201}, {"http.response.status_code": 201}, set()),
        ({"http_status": 500}, {"http.response.status_code": 500}, set()),
        ({"linked": None}, {"mlflow.gateway.requestType": "unified/chat"}, {"mlflow.gateway.linkedTraceId"}),
    ],
)
def test_what_is_not_ordinary_of_a_call_is_said(facts: dict[str, Any], said: dict[str, Any], unsaid: set[str]):
    """Each fact is left out for its one normal value only."""
    before, of_attempt = facts_for_mlflow(plain_call())
    expected = {name: value for name, value in before.items() if name not in unsaid}
    assert facts_for_mlflow(plain_call(**facts)) == ({**expected, **said}, of_attempt)


PLAIN_USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"finish_reason": "length"}, {"gen_ai.response.finish_reasons": ["length"]}),
        (
            {"usage": TokenUsage(10, 5, 15, 3, 0)},
            {"mlflow.chat.tokenUsage": {**PLAIN_USAGE, "cache_read_input_tokens": 3}},
        ),
        (
            {"usage": TokenUsage(10, 5, 15, 0, 3)},
            {"mlflow.chat.tokenUsage": {**PLAIN_USAGE, "cache_creation_input_tokens": 3}},
        ),
        (
            {"usage": TokenUsage(0, 0, 0, 0, 0)},
            {"mlflow.chat.tokenUsage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}},
        ),
    ],
)
def test_what_is_not_ordinary_of_an_attempt_is_said(facts: dict[str, Any], said: dict[str, Any]):
    """Each fact is left out for its one normal value only; for cached tokens that is zero."""
    of_call, before = facts_for_mlflow(plain_call())
    call = plain_call(attempts=[plain_attempt(**facts)])
    assert facts_for_mlflow(call) == (of_call, {**before, **said})


def test_what_opentelemetry_is_told():
    """Names and values follow the semantic conventions: plain values, host and port apart, seconds."""
    gateway, failed, answered = mirror(full_call(), Convention.OTEL)
    assert attributes_of(gateway) == {
        "agent_gateway.endpoint.id": "e-1",
        "agent_gateway.endpoint.name": "chat",
        "server.address": "127.0.0.1",
        "server.port": 5000,
        "mlflow.gateway.linkedTraceId": "tr-0000000000000000000000000000000b",
        "agent_gateway.request.type": "unified/chat",
        "gen_ai.request.stream": True,
        "http.response.status_code": 206,
        "gen_ai.response.time_to_first_chunk": 1.5,
        "agent_gateway.cache.hit": False,
        "error.type": "ClientPayloadError",
    }
    assert attributes_of(failed) == {
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.operation.name": "chat",
        "error.type": "503",
    }
    answered_facts = attributes_of(answered)
    assert list(answered_facts.pop("gen_ai.response.finish_reasons")) == ["length"]
    assert answered_facts == {
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-3-5-haiku",
        "gen_ai.response.model": "claude-3-5-haiku-20241022",
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.cache_write.input_tokens": 2,
        "gen_ai.usage.reasoning.output_tokens": 3,
        "agent_gateway.cost.total": 0.3,
    }


@each_convention
def test_what_is_not_known_is_not_said(convention: Convention):
    """A fact that is None has no key, and a call without a name is still mirrored."""
    (span,) = mirror(GatewayCall(PARENT, start_time_ns=1, end_time_ns=2), convention)
    assert span.name == "gateway/unknown"
    always = {"mlflow.traceRequestId", "mlflow.spanType"} if convention is Convention.MLFLOW else set()
    assert set(attributes_of(span)) == always
    assert span.status.status_code is StatusCode.OK


@each_convention
def test_a_failure_is_told_by_its_type(convention: Convention):
    """A failed span has the status ERROR without a description, and one event with only the error's type."""
    spans = mirror(full_call(), convention)
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.OK]
    assert [span.status.description for span in spans] == [None] * 3
    events = [[(event.name, dict(event.attributes or {})) for event in span.events] for span in spans]
    assert events == [
        [("exception", {"exception.type": "ClientPayloadError"})],
        [("exception", {"exception.type": "503"})],
        [],
    ]


@each_convention
def test_the_link_leads_to_the_gateways_own_span(convention: Convention):
    """Only the gateway's span has an OpenTelemetry link to the gateway's own trace."""
    gateway, *provider_spans = mirror(full_call(), convention)
    assert [(link.context.trace_id, link.context.span_id) for link in gateway.links] == [(0xB, 0xC)]
    assert [span.links for span in provider_spans] == [(), ()]
    assert mirror(full_call(linked=None), convention)[0].links == ()


def test_spans_are_the_callers_own():
    """Trace id and flags are the caller's, without tracestate; the parent is remote; kinds are server and client."""
    parent = TraceContext(TRACE_ID, SPAN_ID, 3, "a=1,b=2")
    gateway, *provider_spans = mirror(full_call(parent=parent), Convention.OTEL)
    for span in (gateway, *provider_spans):
        assert span.context is not None
        assert (span.context.trace_id, span.context.trace_flags) == (TRACE_ID, 3)
        assert len(span.context.trace_state) == 0, "it is text of the caller's"
    assert gateway.parent is not None
    assert (gateway.parent.span_id, gateway.parent.is_remote) == (SPAN_ID, True)
    assert [span.parent.is_remote for span in provider_spans if span.parent] == [False, False]
    assert [span.kind for span in (gateway, *provider_spans)] == [SpanKind.SERVER, SpanKind.CLIENT, SpanKind.CLIENT]


@each_convention
@pytest.mark.parametrize("text", ["please say hello", "x" * 101, "b\xe4d", "500\n", ""])
def test_a_message_is_no_error_type(text: str, convention: Convention):
    """An error type from gateway code that does not have the form of a name is replaced by a generic one."""
    attempt = Attempt(error_type=text)
    for span in mirror(full_call(error_type=text, attempts=[attempt]), convention):
        assert "_OTHER" in attributes_of(span)["error.type"]
        assert [dict(event.attributes or {}) for event in span.events] == [{"exception.type": "_OTHER"}]
        assert not span.status.is_ok


@each_convention
@pytest.mark.parametrize("name", ["503", "client_disconnect", "litellm.RateLimitError", "rate_limit_error"])
def test_a_name_is_an_error_type(name: str, convention: Convention):
    """Classes, statuses and providers' error names are kept as error types."""
    assert name in attributes_of(mirror(full_call(error_type=name), convention)[0])["error.type"]


@each_convention
def test_a_clock_that_is_set_back(convention: Convention):
    """A call that seems to end before it began has a duration of zero, and so has its first byte."""
    call = full_call(start_time_ns=9_000, end_time_ns=1_000, time_to_first_chunk_ns=-5)
    for span in mirror(call, convention):
        assert (span.start_time, span.end_time) == (9_000, 9_000)
    assert float(attributes_of(mirror(call, convention)[0])["gen_ai.response.time_to_first_chunk"]) == 0


def test_the_same_call_has_the_same_ids():
    """Mirroring a call again gives the same span ids, so sending them twice is harmless."""
    call = full_call()
    once, again = mirror(call, Convention.MLFLOW), mirror(call, Convention.MLFLOW)
    assert [ids_of(span) for span in once] == [ids_of(span) for span in again]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gpt-4o", "gpt-4o"),
        ("two words\nand a line", "two_words_and_a_line"),
        ("naïve", "na_ve"),
        ("x" * 5000, "x" * MAX_NAME_LENGTH),
        ("\x00\x1b[31m", "_[31m"),
    ],
)
def test_texts_are_cut_to_names(text: str, name: str):
    """Every text becomes printable ASCII without spaces, at most 200 characters long."""
    facts = facts_of(mirror(small_call(text), Convention.MLFLOW)[0])
    assert facts["endpoint_name"] == name


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("gw.example:5000", {"server.address": "gw.example", "server.port": 5000}),
        ("::1:5000", {"server.address": "::1", "server.port": 5000}),
        ("/run/gateway.sock:None", {"server.address": "/run/gateway.sock"}),
        ("gw:¹", {"server.address": "gw"}),
        (None, {}),
    ],
)
def test_addresses(address: str | None, expected: dict[str, Any]):
    """OpenTelemetry gets host and port separately; an invalid port is left out."""
    facts = attributes_of(mirror(GatewayCall(PARENT, server_address=address), Convention.OTEL)[0])
    assert {key: value for key, value in facts.items() if key.startswith("server.")} == expected


def test_an_attempt_that_did_not_end_ends_with_its_call():
    """An attempt that the gateway left open ends with its call."""
    attempt = Attempt(start_time_ns=2_000)
    _, span = mirror(full_call(attempts=[attempt]), Convention.OTEL)
    assert (span.start_time, span.end_time) == (2_000, 9_000)


class Odd(int):
    """A number whose representation is not JSON, like those of NumPy."""

    def __repr__(self) -> str:
        return "a number"


class OddFloat(float):
    __repr__ = Odd.__repr__


def test_numbers_are_json_whatever_their_type():
    """MLflow stores attributes as JSON."""
    call = plain_call()
    cost = Cost(OddFloat(1e-07), 0, OddFloat(12345678901234567890.5))
    call.add(Attempt("openai", "gpt-4o-mini", usage=TokenUsage(Odd(2), 3, MAX_COUNT), cost=cost))
    call.end()
    facts = facts_of(mirror(call, Convention.MLFLOW)[-1])
    assert facts["mlflow.chat.tokenUsage"] == {"input_tokens": 2, "output_tokens": 3, "total_tokens": MAX_COUNT}
    assert facts["mlflow.llm.cost"] == {"input_cost": 1e-07, "output_cost": 0, "total_cost": 12345678901234567890.5}


@pytest.fixture
def _reads_environment() -> Iterator[None]:
    """Variables are read once per process."""
    _reports_usage.cache_clear()
    yield
    _reports_usage.cache_clear()


@pytest.mark.usefixtures("_reads_environment")
@pytest.mark.parametrize("convention", Convention)
@pytest.mark.parametrize(
    ("value", "reported"), [("", True), ("true", True), ("false", False), ("False", False), ("?", True)]
)
def test_usage_may_be_left_off(
    value: str,
    reported: bool,
    convention: Convention,
    monkeypatch: pytest.MonkeyPatch,
    logged: pytest.LogCaptureFixture,
):
    """If the agent's own spans report tokens to the same back end, mirrors without tokens keep each counted once."""
    monkeypatch.setenv("AGENT_GATEWAY_USAGE", value)
    facts = {name for span in mirror(full_call(), convention) for name in attributes_of(span)}
    counted = {name for name in facts if "usage" in name.lower() or "cost" in name}
    assert bool(counted) is reported
    assert ("AGENT_GATEWAY_USAGE" in logged.text) is (value == "?")
