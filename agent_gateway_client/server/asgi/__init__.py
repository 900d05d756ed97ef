"""Any ASGI gateway: one call per request, timed and told by what passes through the middleware."""

from agent_gateway_client.server.asgi._middleware import GatewayTracingMiddleware

__all__ = ["GatewayTracingMiddleware"]
