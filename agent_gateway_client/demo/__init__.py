"""A model provider, a real MLflow AI Gateway, and agents that call it, all on this machine.

:func:`start_gateway` starts a gateway for a notebook or a shell.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_gateway_client.demo.running import RunningGateway, start_gateway

__all__ = ["RunningGateway", "start_gateway"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agent_gateway_client.demo import running

    return getattr(running, name)
