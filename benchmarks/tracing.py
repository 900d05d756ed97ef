"""MLflow tracing for a benchmark: its real spans, and nowhere to send them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import mlflow
from mlflow.entities.trace_location import MlflowExperimentLocation
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

GATEWAY = "http://gateway.test:5000/gateway"
BASE_URL = f"{GATEWAY}/openai/v1"

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "one two three"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
}

MESSAGES: list[Any] = [{"role": "user", "content": "one two three"}]


class Nowhere(SpanExporter):
    """Takes spans and forgets them."""

    _is_async_enabled = False

    def __init__(self, tracking_uri: str | None = None) -> None:
        super().__init__()

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def trace_nowhere() -> None:
    """Let MLflow make its spans as always, and send them nowhere."""
    import mlflow.tracing.export.mlflow_v3 as export

    # MLflow's exporter would talk to a tracking server, and what is measured here is the request.
    export.MlflowV3SpanExporter = Nowhere
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    mlflow.tracing.reset()
    mlflow.tracing.set_destination(MlflowExperimentLocation("0"))


@contextmanager
def active_span() -> Iterator[Any]:
    """Have an active span, without the warnings that MLflow makes of its own imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace_nowhere()
        with mlflow.start_span("agent") as span:
            yield span


def answering_transport() -> httpx.MockTransport:
    """A transport that answers every request with the same completion, without a network."""
    content = httpx.Response(200, json=ANSWER).content
    headers = {"content-type": "application/json"}
    return httpx.MockTransport(lambda request: httpx.Response(200, headers=headers, content=content))


def floor_hook(request: Any) -> None:
    """The floor: what a user writes who wants no package for it. It asks nothing and sends the header everywhere."""
    span = mlflow.get_current_active_span()
    if span is not None:
        context = span._span.get_span_context()
        request.headers["traceparent"] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
