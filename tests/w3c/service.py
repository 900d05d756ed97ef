"""The service under test of W3C's harness: it receives through the companion and sends through a wrapped client.

It takes ``[{"url": …, "arguments": […]}, …]`` and posts each one's arguments to its URL, below a span of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import mlflow
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agent_gateway_client import wrap_httpx
from agent_gateway_client.active_span import ModelCall, model_call
from agent_gateway_client.server import GatewayTracingMiddleware, gateway_attempt
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.w3c import TraceContext, extract


class _Below(ModelCall):
    """What the requests of one attempt name as their parent."""

    def __init__(self, parent: TraceContext) -> None:
        self._parent = parent

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        return self._parent


@contextmanager
def _span(received: TraceContext | None) -> Iterator[None]:
    """Be in a span below the one that was received, or in one of a new trace."""
    if received is None:
        with mlflow.start_span("request"):
            yield
        return
    # An attempt of a call that is mirrored, where the caller is sampled; its id is all that matters here.
    with gateway_attempt() as attempt:
        token = model_call.set(_Below(received._replace(span_id=attempt.span_id)))
        try:
            yield
        finally:
            model_call.reset(token)


def make_service(exporter: Exporter, gateways: list[str]) -> Any:
    """Make the service.

    Args:
        exporter: Where its mirrors go.
        gateways: What it sends the trace context to: the harness.
    """

    async def serve(request: Request) -> JSONResponse:
        received = extract(request.scope["headers"])
        # Nothing is kept alive: the harness answers each request from a thread that is not always there.
        async with wrap_httpx(httpx.AsyncClient(trust_env=False), gateways) as client:
            for action in await request.json() or []:
                with _span(received):
                    (await client.post(action["url"], json=action["arguments"])).raise_for_status()
        return JSONResponse({})

    app = Starlette(routes=[Route("/test", serve, methods=["POST"])])
    return GatewayTracingMiddleware(app, exporter, is_call=lambda scope: True, endpoint="w3c")
