"""What LiteLLM's dictionaries say of a request, without their payload.

LiteLLM hands its callbacks everything: messages, answers, keys. What is read of it here is numbers, names of closed
sets, and names that the proxy's configuration knows; the rest may be a caller's text.
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

Facts = Mapping[str, Any]
"""What LiteLLM hands to a callback: a request's data, a deployment's arguments, or a logging event's details."""

PASS_THROUGH = "pass_through_endpoint"
"""LiteLLM's call type of the routes that hand a request on to a provider as it is."""

CLIENT_CLOSED_REQUEST = 499
"""LiteLLM's HTTP status for a client that has gone, where ``cancel_on_disconnect`` is set."""

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
    """Return what LiteLLM's name for a kind of call does."""
    return _OPERATIONS.get(call_type, "other")


def error_name(error: BaseException) -> str:
    """Return the provider's HTTP status where an error is one, else the error's class."""
    status = http_status(error)
    # LiteLLM gives connection errors and time-outs a status too, which no provider has sent.
    if status is None or isinstance(error, APIConnectionError):
        return type(error).__name__
    return str(status)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status with which the proxy tells an error to its client."""
    for value in (getattr(error, "status_code", None), getattr(error, "code", None)):
        if str(value).isdecimal() and 400 <= int(str(value)) <= 599:
            return int(str(value))
    return None


def server_request(facts: Facts) -> Facts:
    """Return what the proxy keeps of the HTTP request: its headers, its URL, and when it arrived."""
    return facts.get("proxy_server_request") or (facts.get("litellm_params") or {}).get("proxy_server_request") or {}


def is_from_proxy(facts: Facts) -> bool:
    """Tell whether the proxy has let the request in and noted itself what it keeps of it.

    Before that, what a callback gets of a refused request is its body as the caller wrote it, which may imitate all of
    the proxy's notes. No body can hold an object that JSON has no form for.
    """
    # The pass-through routes keep no caller there, but the framework's own headers, or (LiteLLM 1.110) an object.
    params = facts.get("litellm_params")
    own = params.get("litellm_logging_obj") if isinstance(params, Mapping) else None
    noted = server_request(facts).get("headers"), own
    return any(type(value) not in _FROM_JSON for value in noted) or bool(_notes(facts))


def _notes(facts: Facts) -> Facts:
    """Return the metadata that the proxy and its router write to: the one with the caller's ``UserAPIKeyAuth``.

    Which of the two names it has depends on the route; the other one holds what the caller sent.
    """
    # A request's own data may have litellm_params too, which are the caller's.
    params = facts if "proxy_server_request" in facts else facts.get("litellm_params") or {}
    for name in ("litellm_metadata", "metadata"):
        metadata = params.get(name)
        if isinstance(metadata, Mapping) and type(metadata.get("user_api_key_auth")) not in _FROM_JSON:
            return metadata
    return {}


_FROM_JSON = frozenset({type(None), bool, int, float, str, list, dict})


class Deployment(NamedTuple):
    """What the configuration says of a deployment that a provider is asked for.

    Attributes:
        id: LiteLLM's id of it.
        group: The model group that it is in, which may be a wildcard.
        requested_group: The model group that the request was for, as far as the router notes it.
        names_model: Whether the model that the provider is asked for is the configuration's, and not the caller's.
    """

    id: str
    group: str
    requested_group: Any
    names_model: bool


def deployment(details: Facts) -> Deployment | None:
    """Return the deployment that LiteLLM's router chose, by the details of a call; ``None`` where no router did.

    The router's notes may have been in the request already, and are believed as far as the configuration agrees.
    """
    notes = _notes(details)
    found = _configured_deployment(deployment_id(notes))
    if found is None or not (group := configured(notes.get("deployment_model_name"))) or group != found.model_name:
        return None
    names_model = "*" not in group
    if names_model and not str(found.litellm_params.model).endswith(str(details.get("model") or "?")):
        return None
    # Once there was a fallback, the chosen deployment is of another group than the one that was asked for.
    requested = notes.get("original_model_group") or notes.get("model_group")
    return Deployment(found.model_info.id, group, requested, names_model)


def endpoint(facts: Facts) -> str | None:
    """Return the model group that a request is for, as the configuration names it.

    A model that fits a wildcard is named after the wildcard.
    """
    chosen = deployment(facts)
    if chosen is None:
        return configured(facts.get("model"))
    is_first = chosen.requested_group == _notes(facts).get("model_group")
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
    """Return the name of a provider if LiteLLM knows it. A request may hold any text in its place."""
    known = isinstance(name, str) and (
        name in _PROVIDERS or any(item.get("provider") == name for item in litellm.custom_provider_map)
    )
    return str(name) if known else None


def call_type(facts: Facts) -> str | None:
    """Return LiteLLM's name for a kind of call. A request's own data may hold any text in its place."""
    name = facts.get("call_type")
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


def deployment_id(facts: Facts) -> str | None:
    """Return LiteLLM's id of the deployment that was chosen."""
    return text((facts.get("model_info") or {}).get("id"))


def scope(url: Any, headers: Mapping[str, str], user: Any) -> dict[str, Any]:
    """Return a request's ASGI scope as far as LiteLLM tells it, with its ``UserAPIKeyAuth`` as the user."""
    lines = [
        (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in headers.items()
    ]
    return {"type": "http", "path": urlsplit(str(url)).path, "headers": lines, "user": user}


def token_usage(payload: Facts) -> TokenUsage | None:
    """Return the tokens of LiteLLM's ``StandardLoggingPayload``; ``None`` where the provider reported none."""
    usage = (payload.get("metadata") or {}).get("usage_object") or {}
    details = usage.get("prompt_tokens_details") or {}
    if not payload.get("total_tokens"):
        return None
    return TokenUsage(
        input_tokens=payload.get("prompt_tokens"),
        output_tokens=payload.get("completion_tokens"),
        total_tokens=payload.get("total_tokens"),
        # LiteLLM fills in zeros for what the provider does not report.
        cache_read_input_tokens=usage.get("cache_read_input_tokens") or details.get("cached_tokens") or None,
        cache_creation_input_tokens=usage.get("cache_creation_input_tokens") or None,
        reasoning_output_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or None,
    )


def cost(payload: Facts) -> Cost | None:
    """Return the cost in a ``StandardLoggingPayload``; ``None`` where LiteLLM knows no price."""
    parts, total = payload.get("cost_breakdown") or {}, payload.get("response_cost")
    if not total or parts.get("input_cost") is None or parts.get("output_cost") is None:
        return None
    return Cost(float(parts["input_cost"]), float(parts["output_cost"]), float(total))


def finish_reason(response: Any) -> str | None:
    """Return why a model stopped, as a chat completion or a response of OpenAI's Responses API says it."""
    choices = getattr(response, "choices", None)
    reason = getattr(choices[0], "finish_reason", None) if choices else getattr(response, "status", None)
    return reason_name(reason)


def nanoseconds(seconds: Any) -> int | None:
    """Return seconds since the epoch, as LiteLLM has them, in nanoseconds."""
    return int(seconds * 1e9) if isinstance(seconds, (int, float)) and seconds > 0 else None


def text(value: Any) -> str | None:
    """Return a value if it is a text that is not empty."""
    return value if isinstance(value, str) and value else None


def ends_stream(chunk: Any) -> bool:
    """Tell whether a chunk is the last one of a stream that says anything, whichever API's it is."""
    if isinstance(chunk, (bytes, str)):
        return has_last_event(chunk if isinstance(chunk, bytes) else chunk.encode())
    if getattr(chunk, "type", None) in ("response.completed", "response.incomplete", "response.failed"):
        return True
    return any(getattr(choice, "finish_reason", None) for choice in getattr(chunk, "choices", None) or ())
