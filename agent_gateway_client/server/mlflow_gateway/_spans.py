"""Reads endpoint, provider attempts, tokens, cost and errors from the MLflow AI Gateway's own spans of a request.

They are read after the call, in the exporter's thread. Their inputs and outputs are not read.
"""

import json
import re
from typing import Any

from mlflow import MlflowClient
from mlflow.tracing.constant import SpanAttributeKey
from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.trace import StatusCode

from agent_gateway_client.names import GATEWAY_SPAN_PREFIX
from agent_gateway_client.server.call import CLIENT_DISCONNECT, Attempt, Cost, GatewayCall, TokenUsage
from agent_gateway_client.w3c import TraceContext


def read_spans(call: GatewayCall, spans: list[Span]) -> None:
    """Add the facts of the gateway's own spans to a call."""
    left_open = [span for span in spans if span.end_time is None]
    if left_open:
        _end(left_open, call)
    abandoned = {id(span) for span in left_open} if call.error_type == CLIENT_DISCONNECT else set()
    begun_for_gateways, call.attempts = call.attempts, []
    latest = call.start_time_ns
    # Without usage tracking MLflow makes no gateway span, but on some routes a provider span.
    root = next((span for span in spans if span.name.startswith(GATEWAY_SPAN_PREFIX)), None)
    if root is not None:
        _read_gateway_span(call, root)
        latest = root.start_time or latest
    for span in spans:
        provider = attribute(span, SpanAttributeKey.MODEL_PROVIDER)
        if provider is None:
            continue
        # On passthrough routes MLflow starts the provider's span after the provider has answered.
        is_late = bool(attribute(span, "action") or attribute(span, "proxy_path"))
        attempt = Attempt(
            provider=provider,
            model=attribute(span, SpanAttributeKey.MODEL),
            start_time_ns=latest if is_late else span.start_time or latest,
            end_time_ns=span.end_time,
            error_type=CLIENT_DISCONNECT if id(span) in abandoned else _error_type(span),
            usage=_usage(attribute(span, SpanAttributeKey.CHAT_USAGE)),
            cost=_cost(attribute(span, SpanAttributeKey.LLM_COST)),
            span_id=span.get_span_context().span_id,
        )
        latest = span.end_time or latest
        # The attempt whose id an upstream gateway got, before MLflow had a span for it.
        begun = next((one for one in begun_for_gateways if attempt.start_time_ns <= one.start_time_ns < latest), None)
        if begun is not None:
            begun_for_gateways.remove(begun)
            attempt.span_id = begun.span_id
        call.add(attempt)
    for attempt in begun_for_gateways:
        call.add(attempt)
    call.attempts.sort(key=lambda attempt: attempt.start_time_ns)


def _read_gateway_span(call: GatewayCall, span: Span) -> None:
    context = span.get_span_context()
    call.span_id = context.span_id
    call.linked = TraceContext(context.trace_id, context.span_id, context.trace_flags)
    call.endpoint = attribute(span, "endpoint_name")
    call.endpoint_id = attribute(span, "endpoint_id")
    if call.error_type is None:
        call.error_type = _error_type(span)


def _end(spans: list[Span], call: GatewayCall) -> None:
    """End the spans that MLflow leaves open, whose trace it would never store.

    MLflow does that when a client disconnects from a stream, and on its raw proxy if the response is not a stream.
    """
    client = MlflowClient()
    for span in reversed(spans):
        client.end_span(
            attribute(span, SpanAttributeKey.REQUEST_ID),
            f"{span.get_span_context().span_id:016x}",
            status="ERROR" if call.error_type else "OK",
            attributes={"error.type": call.error_type} if call.error_type else None,
            end_time_ns=call.end_time_ns,
        )


def attribute(span: ReadableSpan, key: str) -> Any:
    """Return an attribute of an MLflow span, decoded from JSON; ``None`` if it is not set."""
    value = (span.attributes or {}).get(key)
    return json.loads(value) if isinstance(value, str) else value


def _error_type(span: ReadableSpan) -> str | None:
    """Return a failed span's error: the HTTP status if its exception has one, else the exception's class.

    An exception's message may contain a prompt. Messages of FastAPI's ``HTTPException`` and MLflow's exception start
    with the status, and only that number is read.
    """
    if span.status.status_code is not StatusCode.ERROR:
        return None
    for event in reversed(span.events):
        attributes = event.attributes or {}
        name = str(attributes.get("exception.type", "")).rpartition(".")[2]
        if name:
            status = re.match(r"([45]\d\d)(?!\d)", str(attributes.get("exception.message", "")))
            return status[1] if status and name in _EXCEPTIONS_WITH_STATUS else name
    return "error"


_EXCEPTIONS_WITH_STATUS = {"HTTPException", "AIGatewayException"}


def _usage(usage: Any) -> TokenUsage | None:
    if not isinstance(usage, dict):
        return None
    return TokenUsage(**{name: usage[name] for name in TokenUsage.__slots__ if isinstance(usage.get(name), int)})


def _cost(cost: Any) -> Cost | None:
    try:
        return Cost(**{name: float(cost[name]) for name in Cost.__slots__})
    except (TypeError, KeyError, ValueError):
        return None
