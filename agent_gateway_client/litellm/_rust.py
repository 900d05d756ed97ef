"""LiteLLM calls that Rust code sends, with ``LITELLM_RUST=true``, without any of Python's HTTP clients."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import litellm

from agent_gateway_client._patching import Replace, Switch
from agent_gateway_client.active_span import model_call
from agent_gateway_client.http import trace_headers
from agent_gateway_client.http._known import instrumented_gateways
from agent_gateway_client.litellm._calls import LiteLLMCall, guard
from agent_gateway_client.w3c import TRACEPARENT


def _bypasses_python(original: Callable[..., Any], switch: Switch) -> Any:
    def setup(*args: Any, **kwargs: Any) -> Any:
        prepared = original(*args, **kwargs)
        if switch.is_on:
            with guard:
                _add_headers(prepared.kwargs)
        return prepared

    return setup


def _streams_from_rust(original: Callable[..., Any], switch: Switch) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        call = model_call.get()
        if switch.is_on and isinstance(call, LiteLLMCall):
            with guard:
                call.returned(self)

    return __init__


def _add_headers(kwargs: dict[str, Any]) -> None:
    """Add the trace context to the arguments of a call that Rust code sends."""
    url = (
        kwargs.get("api_base")
        or kwargs.get("base_url")
        or litellm.api_base
        or os.environ.get("ANTHROPIC_API_BASE")
        or os.environ.get("ANTHROPIC_BASE_URL")
    )
    given = kwargs.get("extra_headers") or {}
    if any(name.lower() == TRACEPARENT for name in given):
        return
    call = model_call.get()
    if isinstance(call, LiteLLMCall):
        call.is_called_from_rust = True
    try:
        kwargs["extra_headers"] = {**given, **trace_headers(url, instrumented_gateways())}
    finally:
        if isinstance(call, LiteLLMCall):
            call.is_called_from_rust = False


_RUST = "litellm.rust_bridge"

RUST_REPLACEMENTS: dict[str, Replace] = (
    {
        f"{_RUST}.host.callbacks_legacy_python:setup|{_RUST}.callbacks_legacy_python:setup": _bypasses_python,
        **{
            f"{_RUST}.execution:{name}.__init__|{_RUST}.streams:{name}.__init__?": _streams_from_rust
            for name in ("Stream", "AsyncStream", "SyncStream")
        },
    }
    if find_spec(_RUST)
    else {}
)
"""The functions that prepare a call's arguments for Rust code and return its stream, in versions that have it."""
