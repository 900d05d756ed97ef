"""active_span.py: whose span is the parent of what is sent now."""

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import mlflow
import mlflow.tracing.provider
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from agent_gateway_client.active_span import current_trace_context
from agent_gateway_client.w3c import TraceContext
from tests.support.client import (
    TRACEPARENT,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
    otel_span,
    restart_mlflow,
)


def headers() -> dict[str, str]:
    found = current_trace_context()
    return found.to_headers() if found else {}


@pytest.fixture
def unified_mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow shares OpenTelemetry's context and tracer provider, and leaves none behind."""
    monkeypatch.setenv("MLFLOW_USE_DEFAULT_TRACER_PROVIDER", "false")
    restart_mlflow()
    yield
    mlflow.tracing.reset()


def test_the_active_mlflow_span_is_propagated():
    """An active MLflow span gives one traceparent with its ids, and no tracestate where it has none."""
    with mlflow.start_span("agent") as span:
        assert headers() == {"traceparent": named_by(span)}


def test_the_innermost_span_wins_and_the_outer_comes_back():
    """Inside nested spans the innermost is named; when it ends the outer is named again, and then none."""
    with mlflow.start_span("outer") as outer:
        with mlflow.start_span("inner") as inner:
            assert headers()["traceparent"] == named_by(inner)
        assert headers()["traceparent"] == named_by(outer)
    assert headers() == {}


def test_a_decorated_function_is_a_span():
    """@mlflow.trace makes its span the active one while the function runs."""

    @mlflow.trace
    def agent() -> tuple[str, str]:
        return headers()["traceparent"], named_by(mlflow.get_current_active_span())

    sent, own = agent()
    assert sent == own


def test_a_span_without_context_is_not_active():
    """A span of start_span_no_context is not the active one, so the one around it is named."""
    with mlflow.start_span("outer") as outer:
        detached = mlflow.start_span_no_context("detached", parent_span=outer)
        assert headers()["traceparent"] == named_by(outer)
        detached.end()


def test_no_span_sends_nothing_and_says_nothing(caplog: pytest.LogCaptureFixture):
    """With neither an MLflow nor an OpenTelemetry span there is no context, and no log above debug."""
    caplog.set_level(logging.DEBUG)
    assert current_trace_context() is None
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_each_thread_has_its_own_span():
    """Threads that run at once each name the span that they opened, and a thread without one names none."""
    together = threading.Barrier(8)

    def work(number: int) -> tuple[str, str]:
        with mlflow.start_span(f"thread {number}") as span:
            together.wait(timeout=60)
            return headers()["traceparent"], named_by(span)

    with mlflow.start_span("main"), ThreadPoolExecutor(8) as pool:
        pairs = list(pool.map(work, range(8)))
        assert pool.submit(headers).result() == {}
    assert all(sent == own for sent, own in pairs)
    assert len({sent for sent, _ in pairs}) == 8


async def test_each_task_has_its_own_span():
    """A task starts with the span it was made under, and tasks that run at once do not see each other's."""
    seen = 0
    everybody = asyncio.Event()

    async def work(parent: str) -> tuple[str, str]:
        nonlocal seen
        assert headers()["traceparent"] == parent
        with mlflow.start_span("task") as span:
            seen += 1
            if seen == 8:
                everybody.set()
            await asyncio.wait_for(everybody.wait(), 60)
            return headers()["traceparent"], named_by(span)

    with mlflow.start_span("main") as main:
        pairs = await asyncio.gather(*(work(named_by(main)) for _ in range(8)))
        assert headers()["traceparent"] == named_by(main)
    assert all(sent == own for sent, own in pairs)
    assert len({sent for sent, _ in pairs}) == 8


@pytest.mark.parametrize("how", ["environment", "decorator"])
def test_an_unsampled_span_is_sent_as_unsampled(how: str, monkeypatch: pytest.MonkeyPatch):
    """A span that MLflow's sampling drops is named with the sampled bit off, and so is a span inside it."""

    def agent() -> tuple[TraceContext | None, TraceContext | None]:
        outer = current_trace_context()
        with mlflow.start_span("inner"):
            return outer, current_trace_context()

    if how == "environment":
        monkeypatch.setenv("MLFLOW_TRACE_SAMPLING_RATIO", "0")
        restart_mlflow()
        outer, inner = mlflow.trace(agent)()
    else:
        outer, inner = mlflow.trace(agent, sampling_ratio_override=0.0)()
    assert outer.trace_id == inner.trace_id
    assert (outer.sampled, inner.sampled) == (False, False)
    # OpenTelemetry may set the random bit; no other is set.
    assert {outer.to_headers()["traceparent"][-2:], inner.to_headers()["traceparent"][-2:]} <= {"00", "02"}


def test_an_otel_span_counts_where_mlflow_has_none():
    """Without an MLflow span OpenTelemetry's current span is named; with one, MLflow's is."""
    with otel_span() as otel:
        assert headers()["traceparent"] == named_by_otel(otel)
        with mlflow.start_span("agent") as span:
            assert headers()["traceparent"] == named_by(span)
            with otel_span():
                assert headers()["traceparent"] == named_by(span)


@pytest.mark.usefixtures("unified_mlflow")
def test_with_one_provider_for_both_the_innermost_of_either_is_named():
    """With MLFLOW_USE_DEFAULT_TRACER_PROVIDER=false MLflow's and OpenTelemetry's spans are one stack."""
    with mlflow.start_span("agent") as span:
        assert headers()["traceparent"] == named_by(span)
        with trace.get_tracer("tests").start_as_current_span("otel") as otel:
            assert headers()["traceparent"] == named_by_otel(otel)
            with mlflow.start_span("inner") as inner:
                assert headers()["traceparent"] == named_by(inner)
        assert headers()["traceparent"] == named_by(span)
    assert headers() == {}


def test_a_remote_parent_is_relayed_with_its_tracestate():
    """A parent from another process that is current is named as it is, tracestate included."""
    state = TraceState([("vendor", "a b"), ("other@sys", "1")])
    remote = SpanContext(0xA, 0xB, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    with trace.use_span(NonRecordingSpan(remote)):
        assert headers() == {
            "traceparent": f"00-{0xA:032x}-{0xB:016x}-01",
            "tracestate": "vendor=a b,other@sys=1",
        }


def test_an_mlflow_span_under_a_remote_parent_relays_its_tracestate():
    """MLflow's span that continues a remote trace is named, with the tracestate that came with the trace."""
    incoming = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    with (
        mlflow.tracing.set_tracing_context_from_http_request_headers(incoming),
        mlflow.start_span("agent") as span,
    ):
        sent = headers()
    assert sent["tracestate"] == "vendor=1"
    assert sent["traceparent"].split("-")[1:3] == [TRACEPARENT.split("-")[1], span.span_id]


def test_baggage_is_never_sent():
    """OpenTelemetry's baggage stays in the process."""
    token = context.attach(baggage.set_baggage("user", "somebody"))
    try:
        with mlflow.start_span("agent"):
            assert set(headers()) == {"traceparent"}
    finally:
        context.detach(token)


@pytest.mark.parametrize("how", ["disabled", "failed", "failed, one provider for both"])
def test_a_span_that_mlflow_could_not_make_is_no_span(how: str, monkeypatch: pytest.MonkeyPatch):
    """Where MLflow hands out a no-op span, nothing is sent and nothing is raised, inside and after it."""
    if how == "disabled":
        mlflow.tracing.disable()
    else:
        # MLflow's start_span never raises: it makes a span without a context the active one.
        if "both" in how:
            monkeypatch.setenv("MLFLOW_USE_DEFAULT_TRACER_PROVIDER", "false")
        monkeypatch.setattr("mlflow.tracing.export.mlflow_v3.MlflowV3SpanExporter", _no_exporter)
        mlflow.tracing.reset()
    with mlflow.start_span("agent"):
        assert current_trace_context() is None
        with otel_span() as otel:
            assert headers()["traceparent"] == named_by_otel(otel)


def test_mlflow_still_keeps_its_active_span_where_it_is_looked_for():
    """MLflow's own context holds the active span; if this fails, a new version moved it."""
    with mlflow.start_span("agent") as span:
        found = trace.get_current_span(mlflow.tracing.provider.mlflow_runtime_context.get_current()).get_span_context()
    assert f"{found.span_id:016x}" == span.span_id
    assert isinstance(found, SpanContext)


@pytest.mark.usefixtures("unified_mlflow")
def test_with_one_provider_for_both_mlflows_own_context_stays_empty():
    """Then MLflow's context need not be asked which of the two holds its spans; if this fails, it has to be."""
    with mlflow.start_span("agent"):
        assert not mlflow.tracing.provider.mlflow_runtime_context.get_current()


@pytest.mark.usefixtures("guards_hold")
def test_when_mlflow_moves_it_one_warning_names_the_version(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Without it OpenTelemetry's span is still propagated, and one warning in all names the version."""
    monkeypatch.delattr(mlflow.tracing.provider, "mlflow_runtime_context")
    with otel_span() as otel:
        assert [headers()["traceparent"] for _ in range(3)] == [named_by_otel(otel)] * 3
    assert current_trace_context() is None
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.name.startswith("agent_gateway_client")
    assert f"mlflow-tracing {metadata.version('mlflow-tracing')}" in warning.getMessage()


@pytest.mark.usefixtures("guards_hold")
@pytest.mark.parametrize(
    "answer",
    [None, "a context", *(trace.set_span_in_context(span) for span in (None, "a span", NonRecordingSpan(None)))],
    ids=["no context", "text", "no span", "text for a span", "span without context"],
)
def test_whatever_mlflow_answers_nothing_is_raised(answer: Any, monkeypatch: pytest.MonkeyPatch):
    """A context of MLflow's that holds no span with a context of its own counts as no span."""
    monkeypatch.setattr(mlflow.tracing.provider, "mlflow_runtime_context", SimpleNamespace(get_current=lambda: answer))
    assert current_trace_context() is None


def test_importing_the_package_loads_no_framework():
    """Importing the package, and asking for headers, loads neither MLflow nor openai nor an HTTP client."""
    program = (
        "import sys, agent_gateway_client as client\n"
        "assert client.trace_headers('http://gateway.test', ['http://gateway.test']) == {}\n"
        "print(sorted({'mlflow', 'openai', 'httpx', 'httpx2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "[]"
    assert done.stderr.startswith("A request to the gateway (http://gateway.test) was sent while no span was active")


def _no_exporter(tracking_uri: str | None = None) -> None:
    raise RuntimeError(f"{tracking_uri} cannot be reached")


def test_what_is_remembered_keeps_no_span_alive():
    """After a span has ended and its context is gone, nothing of ours refers to them."""

    def inside() -> Any:
        with mlflow.start_span("agent"):
            assert current_trace_context() is not None
            return weakref.ref(mlflow.tracing.provider.mlflow_runtime_context.get_current())

    reference = inside()
    gc.collect()
    assert reference() is None


def test_each_context_is_read_again():
    """Contexts that follow one another, also at the same address, are told apart."""
    for _ in range(50):
        with mlflow.start_span("agent") as span:
            assert headers()["traceparent"] == named_by(span)
        assert current_trace_context() is None
