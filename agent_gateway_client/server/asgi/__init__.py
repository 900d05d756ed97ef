"""The middleware for ASGI gateways: one call per request, with the facts that HTTP shows."""

from agent_gateway_client.server.asgi._middleware import GatewayTracingMiddleware

__all__ = ["GatewayTracingMiddleware"]
