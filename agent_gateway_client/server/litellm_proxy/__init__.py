"""The LiteLLM Proxy: ``litellm_settings: {callbacks: agent_gateway_client.server.litellm_proxy.mirror}``.

LiteLLM calls a callback's methods at each step of a request: before a provider is called, when a deployment has failed
or answered, when the response is ready or a stream has ended, and finally, from a queue, with tokens and cost. A mirror
is submitted when the request has ended and its tokens are known.

This package uses one word for each of LiteLLM's dictionaries:

* ``event``: the argument of a callback's method, whatever LiteLLM calls it (``kwargs``, ``data``, ``request_data``);
* ``request``: the event's ``proxy_server_request``, the HTTP request of the caller;
* ``payload``: the event's ``standard_logging_object``, a ``StandardLoggingPayload``.

The hooks ``async_pre_call_hook`` and ``async_pre_call_deployment_hook`` are not used: LiteLLM assumes that a callback
with these hooks changes requests, and disables its cache-aware routing.

LiteLLM keeps one line per header name, so of a request with two ``traceparent`` lines the last one is used.
"""

from typing import Any

from agent_gateway_client._install import install_command
from agent_gateway_client.errors import MissingDependencyError

try:
    import litellm.integrations.custom_logger  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "litellm":
        raise
    raise MissingDependencyError(f"The LiteLLM Proxy is not installed: {install_command('litellm-proxy')}") from None

from agent_gateway_client.server.litellm_proxy._callback import LiteLLMProxyMirror
from agent_gateway_client.server.litellm_proxy._process import mirror_from_environment

__all__ = ["LiteLLMProxyMirror"]

mirror: LiteLLMProxyMirror
"""The callback for the proxy's configuration. Created from the environment at the first use."""


def __getattr__(name: str) -> Any:
    if name != "mirror":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["mirror"] = made = mirror_from_environment()
    return made
