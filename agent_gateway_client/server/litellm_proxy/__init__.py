"""The LiteLLM Proxy: ``litellm_settings: {callbacks: agent_gateway_client.server.litellm_proxy.mirror}``.

LiteLLM calls a callback's methods at each step of a request, with its headers at hand: before a provider is asked, when
a deployment has failed or answered, when the response is ready or has streamed by, and at last with tokens and cost,
from a queue. A mirror is handed on when the request has ended and its tokens are known.

The hooks ``async_pre_call_hook`` and ``async_pre_call_deployment_hook`` are left alone on purpose: LiteLLM takes a
callback that has them for one that changes requests, and then switches its cache-aware routing off.

With its own headers LiteLLM reads only one line of each name, so a request with two ``traceparent`` lines is taken for
one with the last of them.
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
"""What the proxy's configuration names. It is made at the first use, as the environment says."""


def __getattr__(name: str) -> Any:
    if name != "mirror":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["mirror"] = made = mirror_from_environment()
    return made
