"""Sample requests and answers, and an exporter for spans; it does not import MLflow."""

from typing import Any

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
    """Accepts spans and discards them."""

    _is_async_enabled = False

    def __init__(self, tracking_uri: str | None = None) -> None:
        super().__init__()

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS
