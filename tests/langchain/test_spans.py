"""langchain.py: the parent if there are several spans, or none that counts."""

import logging
from contextlib import contextmanager
from typing import Any

import mlflow
import pytest

from tests.support.client import (
    TRACEPARENT,
    MemoryExporter,
    Wire,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
    otel_span,
    remote_span,
    restart_mlflow,
    value_of,
    warnings_in,
)

pytest.importorskip("langchain_core")

from langchain_core.tools import tool

from agent_gateway_client import trace_headers, wrap_httpx
from agent_gateway_client.langchain import GatewayCallbackHandler
from tests.support.langchain import (
    HttpModel,
    each_autolog,  # noqa: F401
    http_model,
    messages,
    model_spans,
    open_handler,  # noqa: F401
    parents,
    with_autolog,
)

CALLS = {
    "invoke": lambda model, config: model.invoke("a", config),
    "ainvoke": lambda model, config: model.ainvoke("a", config),
    "stream": lambda model, config: list(model.stream("a", config)),
    "generate": lambda model, config: model.generate(messages("b", "a"), **config),
    "agenerate": lambda model, config: model.agenerate(messages("b", "a"), **config),
    "batch": lambda model, config: model.batch(["b", "a"], config),
}

each_call = pytest.mark.parametrize("call", CALLS)


@each_call
async def test_a_span_that_the_user_opens_inside_wins(call: str, autolog: str, handler: GatewayCallbackHandler):
    """If a model's code opens its own span around its request, that innermost span is the parent."""
    wire = Wire()
    seen: list[str] = []

    @contextmanager
    def around() -> Any:
        with mlflow.start_span("inside") as span:
            seen.append(named_by(span))
            yield

    with mlflow.start_span("agent"):
        await value_of(CALLS[call](http_model(wire, around=around), {"callbacks": [handler]}))
    assert sorted(parents(wire).values()) == sorted([parent] for parent in seen)


@with_autolog
@each_call
async def test_other_clients_in_the_models_code(call: str, autolog: str, handler: GatewayCallbackHandler):
    """Other requests of the model's code have the call as parent too: wrapped clients, and trace_headers()."""
    wire = Wire()
    headers: list[dict[str, str]] = []

    @contextmanager
    def around() -> Any:
        headers.append(trace_headers("http://elsewhere.test/v1", ["http://elsewhere.test"]))
        yield

    model = http_model(wire, around=around)
    wrap_httpx(model.client, ["http://gw.test:5000"])
    wrap_httpx(model.async_client, ["http://gw.test:5000"])
    with mlflow.start_span("agent"):
        await value_of(CALLS[call](model, {"callbacks": [handler]}))
    assert all(len(sent) == 1 for sent in wire.sent())
    assert sorted([sent["traceparent"]] for sent in headers) == sorted(wire.sent())


async def test_a_span_around_the_call_does_not_win(autolog: str, handler: GatewayCallbackHandler):
    """Autolog's span of the call is inside a span that is opened around the call, for example in a tool."""
    wire = Wire()
    model = http_model(wire)
    outer = []

    @tool
    def ask(word: str) -> str:
        """Ask the model."""
        with mlflow.start_span("in the tool") as span:
            outer.append(named_by(span))
            return str(model.invoke(word).text)

    with mlflow.start_span("agent"):
        ask.invoke({"word": "a"}, {"callbacks": [handler]})
    assert parents(wire) == {"a": outer if autolog == "off" else [model_spans()["a"]]}


async def test_a_model_inside_a_model(autolog: str, handler: GatewayCallbackHandler):
    """A model that calls another one, before and after its own request, uses the right call each time."""
    wire = Wire()
    inner = http_model(wire)

    class Outer(HttpModel):
        def _ask(self, given: list[Any]) -> str:
            inner.invoke("before", {"callbacks": [handler]})
            answer = super()._ask(given)
            inner.invoke("after", {"callbacks": [handler]})
            inner.invoke("alone")
            return answer

    with mlflow.start_span("agent") as span:
        Outer(client=inner.client).invoke("a", {"callbacks": [handler]})
    spans = model_spans()
    expected = {word: [named_by(span) if autolog == "off" else spans[word]] for word in ("before", "a", "after")}
    # This one's run has no handler.
    assert parents(wire) == {**expected, "alone": []}


async def test_a_header_that_is_there_stays(autolog: str, handler: GatewayCallbackHandler):
    """A traceparent that the model or its user sets is sent unchanged."""
    wire = Wire()
    model = http_model(wire)
    model.client.headers["Traceparent"] = TRACEPARENT
    with mlflow.start_span("agent"):
        model.invoke("a", {"callbacks": [handler]})
    assert wire.sent() == [[TRACEPARENT]]


def test_opentelemetry_where_mlflow_has_no_span(autolog: str, handler: GatewayCallbackHandler):
    """If MLflow has no span, OpenTelemetry's is the parent; its tracestate is sent along."""
    wire = Wire()
    with otel_span() as span:
        http_model(wire).invoke("a", {"callbacks": [handler]})
    with remote_span("vendor=1") as remote:
        http_model(wire).invoke("b", {"callbacks": [handler]})
    if autolog == "off":
        assert wire.sent() == [[named_by_otel(span)], [remote]]
        assert wire.sent("tracestate") == [[], ["vendor=1"]]
    else:
        assert wire.sent() == [[model_spans()["a"]], [model_spans()["b"]]]


@each_call
async def test_an_unsampled_call_is_sent_as_unsampled(
    call: str, autolog: str, handler: GatewayCallbackHandler, monkeypatch: pytest.MonkeyPatch
):
    """If MLflow does not sample a trace, the sampled flag of the request is not set, and no mirror is made."""
    monkeypatch.setenv("MLFLOW_TRACE_SAMPLING_RATIO", "0")
    restart_mlflow()
    wire = Wire()
    with mlflow.start_span("agent"):
        await value_of(CALLS[call](http_model(wire), {"callbacks": [handler]}))
    assert len(wire.requests) == (1 if call in ("invoke", "ainvoke", "stream") else 2)
    for (sent,) in wire.sent():
        assert int(sent.rpartition("-")[2], 16) & 1 == 0
    assert not MemoryExporter.spans.get_finished_spans()


@with_autolog
@each_call
async def test_tracing_that_is_switched_off(call: str, autolog: str, handler: GatewayCallbackHandler):
    """If MLflow's tracing is disabled, calls work without headers."""
    mlflow.tracing.disable()
    try:
        wire = Wire()
        await value_of(CALLS[call](http_model(wire), {"callbacks": [handler]}))
    finally:
        mlflow.tracing.enable()
    assert all(sent == [] for sent in wire.sent())


@each_call
async def test_no_span_is_made_twice(
    call: str, autolog: str, handler: GatewayCallbackHandler, caplog: pytest.LogCaptureFixture
):
    """The handler adds no span to the trace: the spans are the same as without it.

    The only log lines are the decisions about each request, with the handler and without it.
    """

    async def spans(config: Any) -> list[tuple[str, str | None]]:
        MemoryExporter.spans.clear()
        with mlflow.start_span("agent"):
            await value_of(CALLS[call](http_model(Wire()), config))
        found = MemoryExporter.spans.get_finished_spans()
        names = {span.context.span_id: span.name for span in found}
        return sorted((span.name, names.get(span.parent.span_id) if span.parent else None) for span in found)

    with caplog.at_level(logging.DEBUG, "agent_gateway_client"):
        assert await spans({"callbacks": [handler]}) == await spans({"callbacks": []})
    assert warnings_in(caplog) == []
    logged = [record for record in caplog.records if record.name.startswith("agent_gateway_client")]
    requests = 1 if call in ("invoke", "ainvoke", "stream") else 2
    said = [record.getMessage().partition(" (")[0].partition(": ")[2] for record in logged]
    assert said == ["sent"] * requests + ["not a gateway"] * requests
    assert {record.levelno for record in logged} == {logging.DEBUG}
