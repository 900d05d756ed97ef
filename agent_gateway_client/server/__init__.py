"""The companion: runs inside a gateway and adds mirror spans, without payload, to the caller's trace.

The flow is the same for every gateway: request headers → :class:`~agent_gateway_client.server.call.GatewayCall` →
attempts as they become known → :func:`~agent_gateway_client.server.mirror.mirror` → exporter.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_gateway_client.server._gateway_call import gateway_call, relayed
    from agent_gateway_client.server.asgi import GatewayTracingMiddleware
    from agent_gateway_client.server.call import current_gateway_call, gateway_attempt
    from agent_gateway_client.server.shared import flush
    from agent_gateway_client.server.wsgi import GatewayTracingWSGIMiddleware

__all__ = [
    "GatewayTracingMiddleware",
    "GatewayTracingWSGIMiddleware",
    "current_gateway_call",
    "flush",
    "gateway_attempt",
    "gateway_call",
    "relayed",
]

_HOME = {
    "GatewayTracingMiddleware": "asgi",
    "GatewayTracingWSGIMiddleware": "wsgi",
    "current_gateway_call": "call",
    "flush": "shared",
    "gateway_attempt": "call",
    "gateway_call": "_gateway_call",
    "relayed": "_gateway_call",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
