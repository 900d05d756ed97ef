"""Reads facts from LiteLLM's events, without their content.

Events contain everything: messages, answers, keys. Only numbers, names from closed sets, and names in the proxy's
configuration are read; everything else could be a caller's text.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import litellm
from litellm.types.utils import CallTypes, LlmProviders
from openai import APIConnectionError

from agent_gateway_client.server.call import Cost, Operation, TokenUsage
from agent_gateway_client.server.reading.responses import has_last_event, reason_name

Event = Mapping[str, Any]
"""The argument of a callback's method; see the package's docstring."""

PASS_THROUGH = "pass_through_endpoint"
"""LiteLLM's call type of the routes that forward a request to a provider unchanged."""

CLIENT_CLOSED_REQUEST = 499
"""LiteLLM's HTTP status for a client that has disconnected, with ``cancel_on_disconnect``."""

_OPERATIONS: dict[str, Operation] = {
    "acompletion": "chat",
    "aresponses": "chat",
    "anthropic_messages": "chat",
    "atext_completion": "text_completion",
    "aembedding": "embeddings",
    "agenerate_content": "generate_content",
    "agenerate_content_stream": "generate_content",
}


_PROVIDERS = frozenset(each.value for each in LlmProviders)
_CALL_TYPES = frozenset(each.value for each in CallTypes) | _OPERATIONS.keys() | {PASS_THROUGH}


def operation(call_type: str) -> Operation:
    """Return the operation of a call type of LiteLLM's."""
    return _OPERATIONS.get(call_type, "other")


def error_name(error: BaseException) -> str:
    """Return the provider's HTTP status if the error has one, else the error's class."""
    status = http_status(error)
    # LiteLLM gives connection errors and timeouts a status too, which no provider has sent.
    if status is None or isinstance(error, APIConnectionError):
        return type(error).__name__
    return str(status)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of the proxy's error response."""
    for value in (getattr(error, "status_code", None), getattr(error, "code", None)):
        if str(value).isdecimal() and 400 <= int(str(value)) <= 599:
            return int(str(value))
    return None


def request_in(event: Event) -> Mapping[str, Any]:
    """Return the HTTP request of an event: its headers, its URL, and its time of arrival."""
    return event.get("proxy_server_request") or (event.get("litellm_params") or {}).get("proxy_server_request") or {}


def is_from_proxy(event: Event) -> bool:
    """Return whether the proxy has authenticated the request and written its own entries into the event.

    The event of a request that is rejected earlier is the caller's body, which may imitate all of the proxy's entries.
    But a body cannot have an object of a type that JSON does not have.
    """
    # On pass-through routes there is no UserAPIKeyAuth, but the framework's headers, or (LiteLLM 1.110) an object.
    params = event.get("litellm_params")
    logging_obj = params.get("litellm_logging_obj") if isinstance(params, Mapping) else None
    values = request_in(event).get("headers"), logging_obj
    return any(type(value) not in _FROM_JSON for value in values) or bool(_proxy_metadata(event))


def _proxy_metadata(event: Event) -> Mapping[str, Any]:
    """Return the metadata that the proxy and its router write: that with the caller's ``UserAPIKeyAuth``.

    It has one of two names, depending on the route; the other one has the caller's own metadata.
    """
    # A caller's body may have litellm_params too.
    params = event if "proxy_server_request" in event else event.get("litellm_params") or {}
    for name in ("litellm_metadata", "metadata"):
        metadata = params.get(name)
        if isinstance(metadata, Mapping) and type(metadata.get("user_api_key_auth")) not in _FROM_JSON:
            return metadata
    return {}


_FROM_JSON = frozenset({type(None), bool, int, float, str, list, dict})


class Deployment(NamedTuple):
    """A deployment in the proxy's configuration.

    Attributes:
        id: LiteLLM's id.
        group: Its model group, which may be a wildcard.
        requested_group: The model group that was requested, if the router recorded it.
        names_model: Whether the requested model comes from the configuration rather than from the caller.
    """

    id: str
    group: str
    requested_group: Any
    names_model: bool


def deployment(event: Event) -> Deployment | None:
    """Return the deployment that LiteLLM's router chose; ``None`` if the router chose none.

    The caller may have sent the router's entries itself, so they are checked against the configuration.
    """
    metadata = _proxy_metadata(event)
    found = _configured_deployment(deployment_id(metadata))
    if found is None or not (group := configured(metadata.get("deployment_model_name"))) or group != found.model_name:
        return None
    names_model = "*" not in group
    if names_model and not str(found.litellm_params.model).endswith(str(event.get("model") or "?")):
        return None
    # After a fallback the chosen deployment is of a different group than the requested one.
    requested = metadata.get("original_model_group") or metadata.get("model_group")
    return Deployment(found.model_info.id, group, requested, names_model)


def endpoint(event: Event) -> str | None:
    """Return the requested model group, as it is in the configuration; for a wildcard, the wildcard."""
    chosen = deployment(event)
    if chosen is None:
        return configured(event.get("model"))
    is_first = chosen.requested_group == _proxy_metadata(event).get("model_group")
    return configured(chosen.requested_group) or (chosen.group if is_first else None)


def _configured_deployment(deployment_id: str | None) -> Any:
    router = _router()
    if router is None or deployment_id is None:
        return None
    if registry := getattr(router, "registry", None):
        # LiteLLM 1.110 warns of the method.
        return registry().deployment(deployment_id)
    return router.get_deployment(model_id=deployment_id)


def _router() -> Any:
    return getattr(sys.modules.get("litellm.proxy.proxy_server"), "llm_router", None)


def provider(name: Any) -> str | None:
    """Return the name of a provider if LiteLLM knows it; it could be any text from a request."""
    known = isinstance(name, str) and (
        name in _PROVIDERS or any(item.get("provider") == name for item in litellm.custom_provider_map)
    )
    return str(name) if known else None


def call_type(event: Event) -> str | None:
    """Return LiteLLM's call type if it is a known one; it could be any text from a request."""
    name = event.get("call_type")
    return name if isinstance(name, str) and name in _CALL_TYPES else None


def configured(name: Any) -> str | None:
    """Return a name if it is one of the proxy's models or aliases."""
    router = _router()
    if router is None or not isinstance(name, str):
        return None
    if registry := getattr(router, "registry", None):
        # LiteLLM 1.110 warns of the attributes.
        known = name in registry().names(kind="group_set") or name in registry().aliases()
    else:
        known = name in router.model_names or name in (router.model_group_alias or {})
    return name if known else None


def deployment_id(event: Event) -> str | None:
    """Return LiteLLM's id of the chosen deployment, from an event or its metadata."""
    return text((event.get("model_info") or {}).get("id"))


def scope(url: Any, headers: Mapping[str, str], user: Any) -> dict[str, Any]:
    """Return a request's ASGI scope with path and headers, and LiteLLM's ``UserAPIKeyAuth`` as the user."""
    lines = [
        (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in headers.items()
    ]
    return {"type": "http", "path": urlsplit(str(url)).path, "headers": lines, "user": user}


def token_usage(payload: Mapping[str, Any]) -> TokenUsage | None:
    """Return the tokens of a payload; ``None`` if the provider reported none."""
    usage = (payload.get("metadata") or {}).get("usage_object") or {}
    details = usage.get("prompt_tokens_details") or {}
    if not payload.get("total_tokens"):
        return None
    return TokenUsage(
        input_tokens=payload.get("prompt_tokens"),
        output_tokens=payload.get("completion_tokens"),
        total_tokens=payload.get("total_tokens"),
        # LiteLLM sets counts that the provider does not report to 0.
        cache_read_input_tokens=usage.get("cache_read_input_tokens") or details.get("cached_tokens") or None,
        cache_creation_input_tokens=usage.get("cache_creation_input_tokens") or None,
        reasoning_output_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or None,
    )


def cost(payload: Mapping[str, Any]) -> Cost | None:
    """Return the cost in a payload; ``None`` if LiteLLM does not know the price."""
    parts, total = payload.get("cost_breakdown") or {}, payload.get("response_cost")
    if not total or parts.get("input_cost") is None or parts.get("output_cost") is None:
        return None
    return Cost(float(parts["input_cost"]), float(parts["output_cost"]), float(total))


def finish_reason(response: Any) -> str | None:
    """Return the finish reason of a chat completion or of a response of OpenAI's Responses API."""
    choices = getattr(response, "choices", None)
    reason = getattr(choices[0], "finish_reason", None) if choices else getattr(response, "status", None)
    return reason_name(reason)


def nanoseconds(seconds: Any) -> int | None:
    """Convert LiteLLM's seconds since the epoch to nanoseconds."""
    return int(seconds * 1e9) if isinstance(seconds, (int, float)) and seconds > 0 else None


def text(value: Any) -> str | None:
    """Return a value if it is a non-empty string."""
    return value if isinstance(value, str) and value else None


def ends_stream(chunk: Any) -> bool:
    """Return whether a chunk is the last one of a stream with content, in any API."""
    if isinstance(chunk, (bytes, str)):
        return has_last_event(chunk if isinstance(chunk, bytes) else chunk.encode())
    if getattr(chunk, "type", None) in ("response.completed", "response.incomplete", "response.failed"):
        return True
    return any(getattr(choice, "finish_reason", None) for choice in getattr(chunk, "choices", None) or ())
