"""Helpers of the client's tests: the HTTP stacks, a transport that keeps requests, and spans."""

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# Read when MLflow is imported, so set before that.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import mlflow.openai
import pytest
from mlflow.entities.trace_location import MlflowExperimentLocation
from mlflow.utils.autologging_utils import get_autologging_config
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from agent_gateway_client import _log

STACKS = [import_module(name) for name in ("httpx2", "httpx") if find_spec(name)]
"""httpx (openai 2.x), httpx2 (openai 3.x), or both, as installed."""

each_stack = pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.__name__)

each_kind = pytest.mark.parametrize("kind", ["Client", "AsyncClient"])

GATEWAY = "http://gw.test:5000/gateway"
OTHER = "http://other.test/v1"

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""A caller's own traceparent: no span of these tests has these ids."""


SAMPLED = f"{TracerProvider().get_tracer('tests').start_span('a').get_span_context().trace_flags:02x}"
"""The flags of a sampled span: 01, or 03 since OpenTelemetry 1.45, which reports that trace ids are random."""


class MemoryExporter(InMemorySpanExporter):
    """Replaces MLflow's exporter, which would talk to a tracking server."""

    _is_async_enabled = False
    spans = InMemorySpanExporter()

    def __init__(self, tracking_uri: str | None = None) -> None:
        super().__init__()

    def export(self, spans: Any) -> Any:
        return MemoryExporter.spans.export(spans)


def restart_mlflow() -> None:
    """Make MLflow's tracing reread its environment variables, after a test has set one."""
    mlflow.tracing.reset()
    # Without a destination MLflow asks its tracking server for the default experiment.
    mlflow.tracing.set_destination(MlflowExperimentLocation("0"))


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start each test with a fresh MLflow that keeps spans in memory, without gateways and without past warnings."""
    monkeypatch.setattr("mlflow.tracing.export.mlflow_v3.MlflowV3SpanExporter", MemoryExporter)
    monkeypatch.setattr(_log, "_warned", set())
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRAC", "MLFLOW_USE_", "MLFLOW_EXPERIMENT", "OTEL_", "OPENAI_", "AZURE_OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.delenv("AGENT_GATEWAY_URLS", raising=False)
    # Nothing is sent to it, as the exporter has no client.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    restart_mlflow()
    with warnings.catch_warnings():
        # At its first span the package mlflow (not mlflow-tracing) imports mlflow.pyfunc, which warns.
        warnings.simplefilter("ignore")
        mlflow.start_span_no_context("first").end()
    MemoryExporter.spans.clear()
    yield
    if not get_autologging_config("openai", "disable", True):
        mlflow.openai.autolog(disable=True)
    mlflow.tracing.reset()


class Wire:
    """A transport's handler for sync and async clients: keeps every request, and answers it.

    Args:
        answer: Called with each request; returns a status, ``Response`` arguments, or ``None`` for 200.
    """

    def __init__(self, answer: Callable[[Any], Any] = lambda request: None) -> None:
        self.requests: list[Any] = []
        self._answer = answer

    def __call__(self, request: Any) -> Any:
        # Copied now: a later hop or attempt must not change the headers recorded here.
        self.requests.append((str(request.url), list(request.headers.raw)))
        answer = self._answer(request)
        arguments = {"status_code": answer} if isinstance(answer, int) else dict(answer or {})
        stack = sys.modules[type(request).__module__.partition(".")[0]]
        return stack.Response(arguments.pop("status_code", 200), **arguments)

    def client(self, stack: Any, kind: str = "Client", **options: Any) -> Any:
        """Return a ``Client`` or ``AsyncClient`` of the stack that sends to this wire."""
        return getattr(stack, kind)(transport=stack.MockTransport(self), **options)

    def sent(self, name: str = "traceparent") -> list[list[str]]:
        """Return, for each request, the values of every header line with this name in any case."""
        return [
            [value.decode() for key, value in headers if key.decode().lower() == name] for _, headers in self.requests
        ]

    @property
    def urls(self) -> list[str]:
        return [url for url, _ in self.requests]


def redirects(hops: dict[str, str]) -> Callable[[Any], Any]:
    """Return an answer that redirects (307, as it keeps the method) from each URL to the next."""
    return lambda request: (
        {"status_code": 307, "headers": {"location": hops[str(request.url)]}} if str(request.url) in hops else None
    )


def named_by(span: Any) -> str:
    """Return the traceparent of a sampled MLflow span."""
    return f"00-{span.trace_id.removeprefix('tr-')}-{span.span_id}-{SAMPLED}"


def named_by_otel(span: Any) -> str:
    """Return the traceparent of an OpenTelemetry span."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def otel_span(name: str = "otel", **options: Any) -> Any:
    """Return a context manager that makes a plain OpenTelemetry span the current one."""
    return TracerProvider().get_tracer("tests").start_as_current_span(name, **options)


@contextmanager
def remote_span(tracestate: str = "vendor=1") -> Iterator[str]:
    """Make a span of another process, with a tracestate, the current one; yields its traceparent."""
    remote = SpanContext(0xA, 0xB, True, TraceFlags(1), TraceState.from_header([tracestate]))
    with trace.use_span(NonRecordingSpan(remote)):
        yield f"00-{0xA:032x}-{0xB:016x}-01"


class BrokenSpan(NonRecordingSpan):
    """A third-party span that raises when its context is read."""

    def __init__(self) -> None:
        super().__init__(SpanContext(1, 1, False))

    def get_span_context(self) -> SpanContext:
        raise RuntimeError("broken on purpose")


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log messages at level warning and above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def value_of(result: Any) -> Any:
    """Return the result of a sync client's call, or the awaited result of an async client's."""
    return await result if inspect.isawaitable(result) else result
