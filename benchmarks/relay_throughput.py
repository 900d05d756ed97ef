"""What one relay process keeps up with on one core: calls of a LiteLLM Proxy, twelve spans each, payload in them.

    python benchmarks/relay_throughput.py

No network and no exporter: bodies as they come in are decoded, collected and put together, and the mirrors are made.
"""

import json
import time

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_gateway_client.relay import protobuf
from agent_gateway_client.relay.collect import Collection
from agent_gateway_client.relay.dialects import ALL_KEYS, NAMES
from agent_gateway_client.relay.limits import Limits
from agent_gateway_client.server.mirror import Convention, mirror

CALLS = 5_000
CALLS_PER_BODY = 40
SPANS_PER_CALL = 12
PAYLOAD_BYTES = 4_000
FACTS = {
    "litellm.call_id": "c",
    "litellm.model_group": "chat",
    "litellm.provider.model": "openai/gpt-4o-mini",
    "llm.request.type": "acompletion",
    "gen_ai.operation.name": "acompletion",
    "gen_ai.system": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.usage.input_tokens": 10,
    "gen_ai.usage.output_tokens": 5,
    "gen_ai.response.finish_reasons": '["stop"]',
    **{f"metadata.{number}": "x" for number in range(25)},
    "gen_ai.input.messages": "p" * PAYLOAD_BYTES,
}


def body_of(first: int) -> bytes:
    """Return a request with the spans of some calls."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for call in range(first, first + CALLS_PER_BODY):
        for number in range(SPANS_PER_CALL):
            span = Span(
                trace_id=(call + 1).to_bytes(16, "big"),
                span_id=(call * SPANS_PER_CALL + number + 1).to_bytes(8, "big"),
                parent_span_id=(9 if number == 0 else call * SPANS_PER_CALL + 1).to_bytes(8, "big"),
                kind=2 if number == 0 else 1,
                flags=0x300 if number == 0 else 0x100,
                start_time_unix_nano=1,
                end_time_unix_nano=2,
            )
            told = FACTS if number == 1 else {"service": "router", "call_type": "acompletion"}
            span.attributes.extend(KeyValue(key=key, value=_value(value)) for key, value in told.items())
            spans.append(span)
    return request.SerializeToString()


def _value(value: str | int) -> AnyValue:
    return AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value)


def main() -> None:
    """Measure, and print one JSON object."""
    bodies = [body_of(first) for first in range(0, CALLS, CALLS_PER_BODY)]
    limits = Limits(spans=CALLS * SPANS_PER_CALL + 1)
    collection = Collection(limits)
    began = time.process_time()
    batches = [protobuf.read_request(body, ALL_KEYS, NAMES, limits.request_spans, 1000) for body in bodies]
    decoded = time.process_time()
    for batch in batches:
        collection.add(batch.spans)
    calls = collection.due(all_of_them=True)
    assembled = time.process_time()
    spans = sum(len(mirror(call, Convention.MLFLOW)) for call in calls)
    ended = time.process_time()
    assert (len(calls), spans) == (CALLS, 2 * CALLS)
    result = {
        "calls": CALLS,
        "megabytes": round(sum(map(len, bodies)) / 1e6, 1),
        "decode_spans_per_s": round(CALLS * SPANS_PER_CALL / (decoded - began)),
        "collect_spans_per_s": round(CALLS * SPANS_PER_CALL / (assembled - decoded)),
        "mirror_calls_per_s": round(CALLS / (ended - assembled)),
        "all_calls_per_s": round(CALLS / (ended - began)),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
