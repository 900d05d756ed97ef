"""MLflow tracing for a benchmark: real spans, which are discarded."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import mlflow
from mlflow.entities.trace_location import MlflowExperimentLocation

from benchmarks.samples import ANSWER, BASE_URL, Nowhere


def _trace_nowhere() -> None:
    """Let MLflow create its spans as usual, and discard them."""
    import mlflow.tracing.export.mlflow_v3 as export

    # MLflow's exporter would call a tracking server, and only the request is measured.
    export.MlflowV3SpanExporter = Nowhere
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    mlflow.tracing.reset()
    mlflow.tracing.set_destination(MlflowExperimentLocation("0"))


@contextmanager
def active_span() -> Iterator[Any]:
    """Make a span active, without the warnings from MLflow's own imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trace_nowhere()
        with mlflow.start_span("agent") as span:
            yield span


def answering_transport() -> httpx.MockTransport:
    """A transport that answers every request with the same completion, without a network."""
    content = httpx.Response(200, json=ANSWER).content
    headers = {"content-type": "application/json"}
    return httpx.MockTransport(lambda request: httpx.Response(200, headers=headers, content=content))


def http_client(*hooks: Callable[[Any], Any]) -> httpx.Client:
    """A client with such a transport."""
    return httpx.Client(base_url=BASE_URL, transport=answering_transport(), event_hooks={"request": [*hooks]})


def as_if_alone(timed: Callable[[], float]) -> Callable[[], float]:
    """Hide OpenTelemetry's instrumentation, which is only in this process for comparison, while something is timed.

    Beside it our clients also keep it from replacing the header.
    """

    def hidden() -> float:
        module = sys.modules.pop(_OTEL_UTILS, None)
        try:
            return timed()
        finally:
            if module is not None:
                sys.modules[_OTEL_UTILS] = module

    return hidden


_OTEL_UTILS = "opentelemetry.instrumentation.utils"


def floor_hook(request: Any) -> None:
    """The floor: what a user writes without a package. It checks nothing and sends the header everywhere."""
    span = mlflow.get_current_active_span()
    if span is not None:
        context = span._span.get_span_context()
        request.headers["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
