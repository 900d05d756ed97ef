"""Makes the mirror spans of a gateway call. The only module that names span attributes.

``gateway/<endpoint>`` is a child of the caller's span. Each attempt is a child of it, ``provider/<provider>/<model>``
(``<operation> <model>`` in OpenTelemetry's convention), and the run of a model server is a child of its attempt,
``engine/<model>``. The vocabulary is closed, and every text is reduced to printable characters and truncated.
"""

import json
import os
import re
from collections.abc import Iterator
from enum import Enum
from functools import cache, lru_cache
from typing import Any

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from agent_gateway_client._log import warn_once
from agent_gateway_client._version import __version__
from agent_gateway_client.names import GATEWAY_SPAN_PREFIX, PROVIDER_SPAN_PREFIX, mlflow_trace_id
from agent_gateway_client.server.call import Attempt, EngineRun, GatewayCall, TokenUsage, new_span_id
from agent_gateway_client.w3c import TraceContext

MAX_NAME_LENGTH = 200
"""Characters of any text in a mirror span."""

_UNPRINTABLE = re.compile(r"[^\x21-\x7e]+")

_ERROR_TYPE = re.compile(r"[A-Za-z0-9_.:<>-]{1,100}\Z")
_OTHER = "_OTHER"
"""OpenTelemetry's fallback value of ``error.type``; used in place of a text that could be a message."""


class Convention(Enum):
    """Attribute names: those that MLflow displays, or OpenTelemetry's semantic conventions (``gen_ai.*``)."""

    MLFLOW = "mlflow"
    OTEL = "otel"


def mirror(call: GatewayCall, convention: Convention) -> list[ReadableSpan]:
    """Make the mirror spans of a call that has ended.

    Args:
        call: The call.
        convention: The names of the attributes. With ``MLFLOW`` values are JSON, as MLflow stores them, and normal
            values are left out.

    Returns:
        The gateway span, then one span per attempt, then one per run of a model server, all in the caller's trace.
        A parent contains its children: an attempt that, by another clock, starts before its call or ends after it is
        clamped to the call's times. Without the gateway span if the call is mirrored elsewhere.
    """
    end = max(call.start_time_ns, call.end_time_ns or 0)
    taken = {call.parent.span_id}
    gateway_id = call.span_id if call.mirrored_elsewhere else _unused_span_id(call.span_id, taken)
    gateway = _span_context(call.parent, gateway_id)
    spans = [] if call.mirrored_elsewhere else [_gateway_span(call, gateway, end, convention)]
    for attempt in call.attempts:
        start = min(max(attempt.start_time_ns, call.start_time_ns), end)
        attempt_end = end if attempt.end_time_ns is None else attempt.end_time_ns
        spans.append(
            _span(
                _attempt_name(attempt, call, convention),
                call,
                parent=gateway,
                context=_span_context(call.parent, _unused_span_id(attempt.span_id, taken)),
                start=start,
                end=min(max(attempt_end, start), end),
                error_type=attempt.error_type,
                facts=_attempt_facts(attempt, call),
                convention=convention,
                kind=SpanKind.CLIENT,
            )
        )
    for run in call.engine_runs:
        taken.add(run.parent_span_id)
        context = _span_context(call.parent, _unused_span_id(run.span_id, taken))
        spans.append(_engine_span(run, call, context, end, convention))
    return spans


def _gateway_span(call: GatewayCall, context: SpanContext, end: int, convention: Convention) -> ReadableSpan:
    return _span(
        f"{GATEWAY_SPAN_PREFIX}{_name(call.endpoint) or 'unknown'}",
        call,
        parent=_span_context(call.parent, call.parent.span_id, is_remote=True),
        context=context,
        start=call.start_time_ns,
        end=end,
        error_type=call.error_type,
        facts=_call_facts(call),
        convention=convention,
        kind=SpanKind.SERVER,
    )


def _attempt_name(attempt: Attempt, call: GatewayCall, convention: Convention) -> str:
    """Return the name of an attempt's span; ``{operation} {model}`` for operations that OpenTelemetry defines."""
    model = _name(attempt.model or attempt.response_model)
    if convention is Convention.OTEL and call.operation != "other":
        return " ".join(filter(None, (call.operation, model)))
    path = [name for name in (_name(attempt.provider), model) if name]
    return PROVIDER_SPAN_PREFIX + "/".join(path) if path else "provider"


def _engine_span(
    run: EngineRun, call: GatewayCall, context: SpanContext, end: int, convention: Convention
) -> ReadableSpan:
    start = min(max(run.start_time_ns, call.start_time_ns), end)
    return _span(
        "/".join(["engine", *filter(None, [_name(run.model)])]),
        call,
        parent=_span_context(call.parent, run.parent_span_id),
        context=context,
        start=start,
        end=min(max(run.end_time_ns, start), end),
        error_type=run.error_type,
        facts=_engine_facts(run),
        convention=convention,
        kind=SpanKind.INTERNAL,
    )


def _unused_span_id(span_id: int, taken: set[int]) -> int:
    """Return an id that no other span of the mirror has: a cycle of spans hangs the roll-up of MLflow 3.17."""
    while span_id in taken:
        span_id = new_span_id()
    taken.add(span_id)
    return span_id


_MLFLOW_DEFAULTS: dict[str, Any] = {
    "gen_ai.request.stream": False,
    "http.response.status_code": 200,
    "gen_ai.response.finish_reasons": ["stop"],
}
"""Values left out of MLflow mirrors because they are the normal case; each attribute costs 35-50 bytes there."""

Fact = tuple[str | None, str | None, Any]
"""MLflow's attribute name, OpenTelemetry's (``None``: not set there), and the value (``None``: unknown)."""


def _call_facts(call: GatewayCall) -> Iterator[Fact]:
    host, _, port = (call.server_address or "").rpartition(":")
    # Negative if the clock was set back in between.
    seconds = None if call.time_to_first_chunk_ns is None else max(0, call.time_to_first_chunk_ns) / 1e9
    linked = mlflow_trace_id(call.linked.trace_id) if call.linked else None
    yield "endpoint_id", "agent_gateway.endpoint.id", _name(call.endpoint_id)
    yield "endpoint_name", "agent_gateway.endpoint.name", _name(call.endpoint)
    yield "server_url", None, _name(call.server_address)
    yield None, "server.address", _name(host)
    yield None, "server.port", int(port) if port.isdecimal() else None
    yield "mlflow.gateway.linkedTraceId", "mlflow.gateway.linkedTraceId", linked
    # The linked trace has the request type in its metadata.
    route = None if linked else "mlflow.gateway.requestType"
    yield route, "agent_gateway.request.type", _name(call.request_type)
    # No operation and no model: to OpenTelemetry back ends the attempt is the inference, not this span.
    yield "gen_ai.request.stream", "gen_ai.request.stream", call.streaming
    yield "http.response.status_code", "http.response.status_code", call.http_status
    yield "gen_ai.response.time_to_first_chunk", "gen_ai.response.time_to_first_chunk", seconds
    yield "agent_gateway.cache.hit", "agent_gateway.cache.hit", call.cache_hit
    yield "error.type", "error.type", _error_name(call.error_type)


_WELL_KNOWN_PROVIDERS = {
    "amazon_bedrock": "aws.bedrock",
    "anthropic_text": "anthropic",
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "azure_text": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "text-completion-openai": "openai",
    "vertex_ai": "gcp.vertex_ai",
    "vertex_ai_beta": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "watsonx_text": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""OpenTelemetry's names of providers, by the names that MLflow and LiteLLM use."""


USAGE_VARIABLE = "AGENT_GATEWAY_USAGE"
"""``false`` leaves tokens and cost out of mirrors, for back ends that also get them from the agent's own spans."""


@cache
def _reports_usage() -> bool:
    value = os.environ.get(USAGE_VARIABLE, "").strip().lower()
    if value not in ("", "true", "false"):
        warn_once("mirror.usage", "%s is %r, which is treated as true; set true or false.", USAGE_VARIABLE, value)
    return value != "false"


def _attempt_facts(attempt: Attempt, call: GatewayCall) -> Iterator[Fact]:
    usage, cost = (attempt.usage, attempt.cost) if _reports_usage() else (None, None)
    finish_reason = _name(attempt.finish_reason)
    provider = _name(attempt.provider)
    yield "mlflow.llm.provider", None, provider
    yield None, "gen_ai.provider.name", _WELL_KNOWN_PROVIDERS.get(provider.lower(), provider) if provider else None
    model, response_model = _name(attempt.model), _name(attempt.response_model)
    yield "mlflow.llm.model", None, model or response_model
    yield None, "gen_ai.request.model", model
    is_another = model is not None and response_model != model
    yield "gen_ai.response.model", None, response_model if is_another else None
    yield None, "gen_ai.response.model", response_model
    yield None, "gen_ai.operation.name", None if call.operation == "other" else call.operation
    if usage is not None:
        yield "mlflow.chat.tokenUsage", None, _tokens(usage) or None
        yield None, "gen_ai.usage.input_tokens", usage.input_tokens
        yield None, "gen_ai.usage.output_tokens", usage.output_tokens
        yield None, "gen_ai.usage.cache_read.input_tokens", usage.cache_read_input_tokens
        yield None, "gen_ai.usage.cache_write.input_tokens", usage.cache_creation_input_tokens
        yield None, "gen_ai.usage.reasoning.output_tokens", usage.reasoning_output_tokens
    if cost is not None:
        yield "mlflow.llm.cost", None, _known_fields(cost)
        yield None, "agent_gateway.cost.total", cost.total_cost
    yield "gen_ai.response.finish_reasons", "gen_ai.response.finish_reasons", [finish_reason] if finish_reason else None
    yield "error.type", "error.type", _error_name(attempt.error_type)


def _engine_facts(run: EngineRun) -> Iterator[Fact]:
    # Not gen_ai.request.model, which would make this span an inference.
    yield "mlflow.llm.model", "gen_ai.response.model", _name(run.model)
    for name, seconds in (
        ("gen_ai.latency.time_in_queue", run.queue_seconds),
        ("gen_ai.latency.time_in_model_prefill", run.prefill_seconds),
        ("gen_ai.latency.time_in_model_decode", run.decode_seconds),
        ("gen_ai.latency.time_to_first_token", run.first_token_seconds),
    ):
        yield name, name, seconds
    yield "error.type", "error.type", _error_name(run.error_type)


def _span(
    name: str,
    call: GatewayCall,
    *,
    parent: SpanContext,
    context: SpanContext,
    start: int,
    end: int,
    error_type: str | None,
    facts: Iterator[Fact],
    convention: Convention,
    kind: SpanKind,
) -> ReadableSpan:
    is_gateway_span = kind is SpanKind.SERVER
    failure = _error_name(error_type)
    return ReadableSpan(
        name=name,
        context=context,
        parent=parent,
        resource=_resource(convention),
        instrumentation_scope=_SCOPE,
        attributes=_attributes(call, facts, convention),
        # MLflow's UI marks a span as failed by an event of this name. It has the type and no message.
        events=[Event("exception", {"exception.type": failure}, timestamp=end)] if failure else (),
        links=[Link(_span_context(call.linked, call.linked.span_id))] if is_gateway_span and call.linked else (),
        kind=kind,
        status=_OK if error_type is None else _ERROR,
        start_time=start,
        end_time=end,
    )


def _attributes(call: GatewayCall, facts: Iterator[Fact], convention: Convention) -> dict[str, Any]:
    if convention is Convention.OTEL:
        return {name: value for _, name, value in facts if name is not None and value is not None}
    attributes = {"mlflow.traceRequestId": f'"{mlflow_trace_id(call.parent.trace_id)}"', "mlflow.spanType": '"LLM"'}
    for name, _, value in facts:
        if value is not None and name is not None and value != _MLFLOW_DEFAULTS.get(name):
            attributes[name] = _to_json(value)
    return attributes


def _to_json(value: Any) -> str:
    return _object_of_numbers(value) if type(value) is dict else _encode(value)


def _object_of_numbers(numbers: dict[str, float]) -> str:
    """Return the JSON of tokens or a cost, in a third of the time of an encoder, which is made anew for each object."""
    # The base types' representations: those of a subclass, like NumPy's, may not be JSON.
    fields = [f'"{name}":{n if type(n) is int else _number(n)}' for name, n in numbers.items()]
    return "{" + ",".join(fields) + "}"


def _number(number: float) -> str:
    return (int if isinstance(number, int) else float).__repr__(number)


# json.dumps() with separators would create an encoder per call.
_encode = json.JSONEncoder(separators=(",", ":")).encode

_SCOPE = InstrumentationScope("agent-gateway-client", __version__)
_trace_flags = lru_cache(TraceFlags)
_OK, _ERROR = Status(StatusCode.OK), Status(StatusCode.ERROR)


@cache
def _resource(convention: Convention) -> Resource:
    """Return the spans' resource: for OTLP, that of ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES``.

    Empty for MLflow, which would overwrite tags of the caller's trace with it.
    """
    if convention is Convention.MLFLOW:
        return Resource({})
    return Resource({"service.name": "agent-gateway"}).merge(OTELResourceDetector().detect())


def _span_context(context: TraceContext, span_id: int, *, is_remote: bool = False) -> SpanContext:
    # No tracestate, which is up to 8 KB of the caller's text per span.
    return SpanContext(context.trace_id, span_id, is_remote, _trace_flags(context.flags))


@lru_cache
def _name(text: str | None) -> str | None:
    """Reduce a text to printable ASCII without spaces, and truncate it."""
    return _UNPRINTABLE.sub("_", text)[:MAX_NAME_LENGTH] if text else None


def _error_name(error_type: str | None) -> str | None:
    """Return the name of a failure; ``_OTHER`` for a text that could be a message."""
    if error_type is None:
        return None
    return error_type if _ERROR_TYPE.match(error_type) else _OTHER


def _tokens(usage: TokenUsage) -> dict[str, int]:
    """Return the tokens by MLflow's names, without reasoning tokens (MLflow has no name) and zero cached tokens."""
    return {
        name: n
        for name in _MLFLOW_TOKENS
        if (n := getattr(usage, name)) is not None and (n or not name.startswith("cache_"))
    }


_MLFLOW_TOKENS = [name for name in TokenUsage.__slots__ if name != "reasoning_output_tokens"]


def _known_fields(facts: Any) -> dict[str, Any]:
    return {name: value for name in facts.__slots__ if (value := getattr(facts, name)) is not None}
