"""LiteLLM's SDK.

All its calls are sent with httpx or aiohttp, which :func:`instrument` covers. This package adds support for the span of
``mlflow.litellm.autolog()``, and for ``LITELLM_RUST``, which bypasses Python's HTTP clients.
"""

from agent_gateway_client._install import install_command
from agent_gateway_client.errors import MissingDependencyError

try:
    import litellm  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "litellm":
        raise
    raise MissingDependencyError(
        f"instrument_litellm() needs the package litellm: {install_command('litellm')}"
    ) from None

from agent_gateway_client.litellm._instrument import LiteLLMInstrumentation, instrument_litellm

__all__ = ["LiteLLMInstrumentation", "instrument_litellm"]
