"""LangChain and LangGraph: a callback handler."""

from agent_gateway_client._install import install_command
from agent_gateway_client.errors import MissingDependencyError

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    raise MissingDependencyError(
        f"GatewayCallbackHandler needs the package langchain-core: {install_command('langchain')}"
    ) from None

from agent_gateway_client.langchain._handler import GatewayCallbackHandler

__all__ = ["GatewayCallbackHandler"]
