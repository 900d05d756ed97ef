"""Spans as gateways send them, in OTLP's two encodings, and the calls that a relay makes of them."""

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_gateway_client.relay.collect import Collection
from agent_gateway_client.relay.limits import Limits
from agent_gateway_client.relay.spans import IncomingSpan
from agent_gateway_client.server.call import GatewayCall

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
CALLER = 0xB7AD6B7169203331
SERVER, CLIENT, INTERNAL = 2, 3, 1
LOCAL, REMOTE, UNKNOWN = 0x100, 0x300, 0
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def span(span_id: int, parent_id: int, name: str = "span", **facts: Any) -> Span:
    """Return a span that lasts a second and starts at ``at`` seconds.

    ``kind``, ``flags``, ``at`` and ``lasts`` (seconds), ``failed``, ``message``, ``trace`` and ``attributes`` may be
    given.
    """
    start = START + int(facts.get("at", 0) * SECOND)
    made = Span(
        trace_id=facts.get("trace", TRACE).to_bytes(16, "big"),
        span_id=span_id.to_bytes(8, "big"),
        parent_span_id=parent_id.to_bytes(8, "big") if parent_id else b"",
        name=name,
        kind=facts.get("kind", INTERNAL),
        flags=facts.get("flags", LOCAL),
        start_time_unix_nano=start,
        end_time_unix_nano=start + int(facts.get("lasts", 1) * SECOND),
        attributes=[KeyValue(key=key, value=any_value(value)) for key, value in facts.get("attributes", {}).items()],
    )
    if facts.get("failed"):
        made.status.code = 2  # type: ignore[assignment]
        made.status.message = facts.get("message", "")
    return made


def root(span_id: int = 1, parent_id: int = CALLER, **facts: Any) -> Span:
    """Return a gateway's root span, whose parent is the caller's span."""
    return span(span_id, parent_id, "POST /v1/chat/completions", **{"kind": SERVER, "flags": REMOTE, **facts})


MODEL = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini"}
ENGINE = {
    "gen_ai.latency.time_to_first_token": 1.75,
    "gen_ai.latency.e2e": 3.75,
    "gen_ai.latency.time_in_queue": 1.25,
    "gen_ai.usage.prompt_tokens": 10,
    "gen_ai.usage.completion_tokens": 5,
    "gen_ai.latency.time_in_model_prefill": 0.5,
    "gen_ai.latency.time_in_model_decode": 2.0,
    "gen_ai.latency.time_in_model_inference": 2.5,
    "gen_ai.request.id": "chatcmpl-1",
    "gen_ai.request.max_tokens": 100,
}
"""vLLM 0.32's attributes of a request (``do_tracing`` in ``vllm/v1/engine/output_processor.py``), without a model."""


def attempt(span_id: int, parent_id: int = 1, **facts: Any) -> Span:
    """Return a gateway's span of an attempt."""
    return span(span_id, parent_id, "chat", **{"kind": CLIENT, "attributes": MODEL, **facts})


def engine(span_id: int, parent_id: int, **facts: Any) -> Span:
    """Return a model server's span of a request, as vLLM sends it."""
    return span(span_id, parent_id, "llm_request", **{"kind": SERVER, "flags": REMOTE, "attributes": ENGINE, **facts})


def any_value(value: Any) -> AnyValue:
    """Return a value as an OTLP message."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    return AnyValue(array_value=ArrayValue(values=[any_value(one) for one in value]))


def request(
    spans: Sequence[Span], service: str = "gateway", scope: str = "gateway", served_model: str = ""
) -> ExportTraceServiceRequest:
    """Return a request with the spans of one service."""
    made = ExportTraceServiceRequest()
    resource_spans = made.resource_spans.add()
    resource = {"service.name": service, **({"gen_ai.response.model": served_model} if served_model else {})}
    for key, value in resource.items():
        resource_spans.resource.attributes.append(KeyValue(key=key, value=any_value(value)))
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = scope
    scope_spans.spans.extend(spans)
    return made


def protobuf_body(spans: Sequence[Span], **names: str) -> bytes:
    """Return a request's body in protobuf."""
    return request(spans, **names).SerializeToString()


def json_body(spans: Sequence[Span], **names: str) -> bytes:
    """Return a request's body in JSON."""
    return as_json(request(spans, **names))


def as_json(sent: ExportTraceServiceRequest) -> bytes:
    """Return a request in OTLP's JSON: protobuf's own, with ids in hexadecimal and enums as numbers."""
    body = MessageToDict(sent, use_integers_for_enums=True)
    for of_resource in body.get("resourceSpans", []):
        for of_scope in of_resource.get("scopeSpans", []):
            for one in of_scope.get("spans", []):
                for identified in (one, *one.get("links", [])):
                    for name in ("traceId", "spanId", "parentSpanId"):
                        if name in identified:
                            identified[name] = base64.b64decode(identified[name]).hex()
    return json.dumps(body).encode()


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Sink:
    """Accepts calls like an exporter."""

    calls: list[GatewayCall] = field(default_factory=list)
    flushed: int = 0

    def submit(self, call: GatewayCall) -> None:
        self.calls.append(call)

    def flush(self, timeout: float) -> bool:
        self.flushed += 1
        return True

    async def wait_for(self, count: int) -> None:
        """Wait until this many calls were submitted."""
        for _ in range(6000):
            if len(self.calls) >= count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(self.calls)} calls")


def collected(*batches: Sequence[IncomingSpan], limits: Limits | None = None) -> list[GatewayCall]:
    """Return the calls that are made of batches, once nothing more is awaited."""
    collection = Collection(limits or Limits(), Clock())
    for batch in batches:
        collection.add(batch)
    return collection.due(all_of_them=True)


def the_call(*spans: Span, **names: str) -> GatewayCall:
    """Return the only call that is made of spans."""
    (call,) = collected(read(spans, **names))
    return call


def read(spans: Sequence[Span], **names: str) -> list[IncomingSpan]:
    """Return spans as the relay decodes them from protobuf."""
    from agent_gateway_client.relay.dialects import ALL_KEYS, NAMES
    from agent_gateway_client.relay.protobuf import read_request

    return read_request(protobuf_body(spans, **names), ALL_KEYS, NAMES, 1000, 1000).spans


Attributes = Mapping[str, Any]
