"""The attribute names of gateways, instrumentations and model servers: one small table each.

A span is a model call if a table claims it; the first one that does is used. A span that no table claims is never
passed on. Only its ids, times and status are used, to find out which spans belong to one call. No table has a key that
can hold a payload, and only the tables' keys are decoded.

Sources: OpenTelemetry's GenAI conventions (1.27 to 1.36, and v0.1.0 of the repository that they moved to),
OpenInference, OpenLLMetry, LiteLLM (``integrations/opentelemetry.py`` and ``integrations/otel``), MLflow
(``tracing/constant.py``), vLLM (``vllm/tracing/utils.py``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent_gateway_client.names import GATEWAY_SPAN_PREFIX
from agent_gateway_client.relay.spans import IncomingSpan

OWN_SERVICE = "agent-gateway"
"""``service.name`` of the companion's mirrors, unless the gateway sets another."""

OWN_SCOPE = "agent-gateway-client"
"""The scope of the companion's mirrors."""

FASTAPI_SCOPE = "fastapi"
"""The scope of FastAPI's built-in telemetry."""

NAMES = frozenset({OWN_SERVICE, OWN_SCOPE, FASTAPI_SCOPE})
"""The service and scope names that are kept."""

Keys = Mapping[str, tuple[str, ...]]
"""The attributes of each fact, the most reliable first."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One set of names for the facts of a call.

    Attributes:
        name: For people.
        claims: Returns whether a span is a model call (in :data:`ENGINE`, a model server's span) with these names.
        keys: The attributes of each fact.
        parent_is_root: Whether such a span is always directly below the gateway's root. It can then be mirrored even if
            the root went to another relay.
        estimates_failures: Whether the tokens of a call that failed or was cut off are the gateway's estimate, not the
            provider's count.
        begins_early: Whether a streamed fallback begins with the request and not after the failed attempt before it.
    """

    name: str
    claims: Callable[[IncomingSpan], bool]
    keys: Keys = field(default_factory=dict)
    parent_is_root: bool = False
    estimates_failures: bool = False
    begins_early: bool = False


_GEN_AI: Keys = {
    "provider": ("gen_ai.provider.name", "gen_ai.system"),
    "model": ("gen_ai.request.model", "gen_ai.response.model"),
    "response_model": ("gen_ai.response.model",),
    "endpoint": ("gen_ai.request.model",),
    "operation": ("gen_ai.operation.name",),
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
    "output_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
    "total_tokens": ("gen_ai.usage.total_tokens",),
    "cache_read_input_tokens": ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens"),
    "cache_creation_input_tokens": (
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
    ),
    "reasoning_output_tokens": ("gen_ai.usage.reasoning.output_tokens",),
    "finish_reason": ("gen_ai.response.finish_reasons", "gen_ai.response.finish_reason"),
    "streaming": ("gen_ai.request.stream", "gen_ai.request.is_stream"),
    "first_chunk_seconds": ("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token"),
    "http_status": ("http.response.status_code", "http.status_code", "http.status"),
    "error_type": ("error.type",),
}
"""OpenTelemetry's names, the newest first; ``gen_ai.system`` and ``…prompt_tokens`` are those of 1.27 and before."""

_OPERATIONS = {"chat", "text_completion", "embeddings", "generate_content"}


def _is_gen_ai(span: IncomingSpan) -> bool:
    attributes = span.attributes
    operation = attributes.get("gen_ai.operation.name")
    names_a_model = bool(attributes.get("gen_ai.request.model") or attributes.get("gen_ai.response.model"))
    names_a_provider = bool(attributes.get("gen_ai.provider.name") or attributes.get("gen_ai.system"))
    return operation in _OPERATIONS if operation is not None else names_a_model and names_a_provider


_OPENLLMETRY: Keys = {
    **_GEN_AI,
    "operation": ("gen_ai.operation.name", "llm.request.type"),
    "total_tokens": ("gen_ai.usage.total_tokens", "llm.usage.total_tokens"),
    "input_tokens": (*_GEN_AI["input_tokens"], "llm.usage.prompt_tokens"),
    "output_tokens": (*_GEN_AI["output_tokens"], "llm.usage.completion_tokens"),
    "finish_reason": (*_GEN_AI["finish_reason"], "llm.response.finish_reason"),
    "streaming": ("llm.is_streaming", *_GEN_AI["streaming"]),
}
_REQUEST_TYPES = {"chat", "completion", "embedding", "rerank"}


def _is_openllmetry(span: IncomingSpan) -> bool:
    return span.attributes.get("llm.request.type") in _REQUEST_TYPES


_LITELLM: Keys = {
    **_OPENLLMETRY,
    "model": ("litellm.provider.model", "gen_ai.request.model"),
    "endpoint": ("litellm.model_group", "gen_ai.request.model"),
    "operation": ("litellm.call_type", "llm.request.type", "gen_ai.operation.name"),
    "request_type": ("litellm.call_type", "llm.request.type"),
    "streaming": ("litellm.request.streaming", "llm.is_streaming", "gen_ai.request.stream"),
    "input_cost": ("litellm.cost.input", "gen_ai.cost.input_cost"),
    "output_cost": ("litellm.cost.output", "gen_ai.cost.output_cost"),
    "total_cost": ("litellm.cost.total", "gen_ai.cost.total_cost"),
    "http_status": ("litellm.provider.error.code", "http.response.status_code", "error.code"),
}


_LITELLM_REFUSALS = ("ProxyException", "BudgetExceededError", "HTTPException")
"""Exceptions that LiteLLM Proxy raises before it asks a provider."""


def _is_litellm_v1(span: IncomingSpan) -> bool:
    """Tell LiteLLM's span of a model call from its routing spans. Without a provider, none was called."""
    attributes = span.attributes
    is_call = "litellm.call_id" in attributes and "llm.request.type" in attributes
    return is_call and bool(
        _names_deployment(span) or attributes.get("gen_ai.system") or attributes.get("gen_ai.provider.name")
    )


def _names_deployment(span: IncomingSpan) -> bool:
    """Tell whether LiteLLM names the chosen deployment, whose name is prefixed with the provider."""
    return "/" in str(span.attributes.get("litellm.provider.model", ""))


def _is_litellm_v2(span: IncomingSpan) -> bool:
    return "litellm.call_type" in span.attributes and _is_gen_ai(span)


_OPENINFERENCE: Keys = {
    "provider": ("llm.provider", "llm.system"),
    "model": ("llm.model_name", "embedding.model_name", "reranker.model_name"),
    "endpoint": ("llm.model_name", "embedding.model_name", "reranker.model_name"),
    "operation": ("openinference.span.kind",),
    "input_tokens": ("llm.token_count.prompt",),
    "output_tokens": ("llm.token_count.completion",),
    "total_tokens": ("llm.token_count.total",),
    "cache_read_input_tokens": ("llm.token_count.prompt_details.cache_read",),
    "cache_creation_input_tokens": ("llm.token_count.prompt_details.cache_write",),
    "input_cost": ("llm.cost.prompt",),
    "output_cost": ("llm.cost.completion",),
    "total_cost": ("llm.cost.total",),
    "finish_reason": ("llm.finish_reason",),
    "http_status": ("http.response.status_code",),
    "error_type": ("error.type",),
}
_OPENINFERENCE_KINDS = {"LLM", "EMBEDDING", "RERANKER"}


def _is_openinference(span: IncomingSpan) -> bool:
    return span.attributes.get("openinference.span.kind") in _OPENINFERENCE_KINDS


_MLFLOW: Keys = {
    "provider": ("mlflow.llm.provider",),
    "model": ("mlflow.llm.model",),
    "endpoint": ("mlflow.llm.model",),
    "operation": ("mlflow.spanType",),
    "usage": ("mlflow.chat.tokenUsage",),
    "cost": ("mlflow.llm.cost",),
    "error_type": ("error.type",),
}
"""MLflow's values are JSON."""

_MLFLOW_TYPES = {'"LLM"', '"CHAT_MODEL"', '"EMBEDDING"', "LLM", "CHAT_MODEL", "EMBEDDING"}


def _is_mlflow(span: IncomingSpan) -> bool:
    attributes = span.attributes
    return attributes.get("mlflow.spanType") in _MLFLOW_TYPES or "mlflow.chat.tokenUsage" in attributes


_OWN: Keys = {
    **_GEN_AI,
    "total_cost": ("agent_gateway.cost.total",),
    "endpoint": ("agent_gateway.endpoint.name",),
    "endpoint_id": ("agent_gateway.endpoint.id",),
    "request_type": ("agent_gateway.request.type",),
    "cache_hit": ("agent_gateway.cache.hit",),
    "server_host": ("server.address",),
    "server_port": ("server.port",),
}


def is_own(span: IncomingSpan) -> bool:
    """Tell whether a span is one of the companion's mirrors."""
    return span.scope == OWN_SCOPE or span.resource.service == OWN_SERVICE


def _is_own_attempt(span: IncomingSpan) -> bool:
    return is_own(span) and not span.name.startswith((GATEWAY_SPAN_PREFIX, "engine"))


OWN = Dialect("the companion", _is_own_attempt, _OWN, parent_is_root=True)

DIALECTS = (
    OWN,
    Dialect("LiteLLM v2", _is_litellm_v2, _LITELLM, estimates_failures=True),
    Dialect("LiteLLM v1", _is_litellm_v1, _LITELLM, parent_is_root=True, estimates_failures=True, begins_early=True),
    Dialect("OpenInference", _is_openinference, _OPENINFERENCE),
    Dialect("OpenLLMetry", _is_openllmetry, _OPENLLMETRY),
    Dialect("OpenTelemetry GenAI", _is_gen_ai, _GEN_AI),
    Dialect("MLflow", _is_mlflow, _MLFLOW),
)
"""In this order: the more specific dialects come first, because they use the general names too."""

ROOT = Dialect(
    "the root of a gateway's part",
    lambda span: span.parent_is_remote,
    {
        "http_status": ("http.response.status_code", "http.status_code", "http.status"),
        "error_type": ("error.type",),
        "endpoint_name": ("endpoint_name",),
        "linked": ("mlflow.gateway.linkedTraceId",),
        "cache_hit": ("agent_gateway.cache.hit",),
    },
)
"""What is read from the span around the model calls. Not its ``server.address``, which the caller can set."""

ENGINE = Dialect(
    "vLLM, SGLang",
    lambda span: any(key.startswith("gen_ai.latency.") for key in span.attributes),
    {
        "model": ("gen_ai.response.model", "gen_ai.request.model"),
        "queue_seconds": ("gen_ai.latency.time_in_queue",),
        "prefill_seconds": ("gen_ai.latency.time_in_model_prefill",),
        "decode_seconds": ("gen_ai.latency.time_in_model_decode",),
        "first_token_seconds": ("gen_ai.latency.time_to_first_token",),
        "error_type": ("error.type",),
    },
)
"""A model server's span of a request, ``llm_request`` in vLLM. Latencies are in seconds."""

ALL_KEYS = frozenset(
    {key for dialect in (*DIALECTS, ROOT, ENGINE) for keys in dialect.keys.values() for key in keys}
    | {"llm.request.type", "litellm.call_id", "openinference.span.kind", "mlflow.spanType", "gen_ai.response.model"}
)
"""All attributes that the relay reads."""


def _was_refused(span: IncomingSpan) -> bool:
    """Tell whether LiteLLM reports a call that it refused, on its own span or on FastAPI's current one."""
    error = str(span.attributes.get("error.type", ""))
    return "litellm.call_id" in span.attributes and error.endswith(_LITELLM_REFUSALS)


def dialect_of(span: IncomingSpan) -> Dialect | None:
    """Return the dialect of a model call; ``None`` if the span is not one, such as FastAPI's own spans."""
    if not span.attributes and not is_own(span):
        return None
    if ENGINE.claims(span) or span.scope == FASTAPI_SCOPE or _was_refused(span):
        return None
    return next((dialect for dialect in DIALECTS if dialect.claims(span)), None)
