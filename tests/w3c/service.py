"""The service under test of W3C's harness: it receives and sends through the companion.

It takes ``[{"url": …, "arguments": […]}, …]`` and posts each one's arguments to its URL, below a span of its own. Where
the caller is sampled, that span is the mirror of an attempt, and the companion itself puts the trace context on the
request. Where it is not, the companion makes no mirrors; the service then does the same with a wrapped client.
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
from agent_gateway_client.server import GatewayTracingMiddleware, current_gateway_call
from agent_gateway_client.server.call import new_span_id
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
    token = model_call.set(_Below(received._replace(span_id=new_span_id())))
    try:
        yield
    finally:
        model_call.reset(token)


async def _post(action: dict[str, Any], client: httpx.AsyncClient) -> None:
    (await client.post(action["url"], json=action["arguments"])).raise_for_status()


def make_service(exporter: Exporter, gateways: list[str]) -> Any:
    """Make the service.

    Args:
        exporter: Where its mirrors go.
        gateways: What it sends the trace context to: the harness.
    """

    async def serve(request: Request) -> JSONResponse:
        # Nothing is kept alive: the harness answers each request from a thread that is not always there.
        async with httpx.AsyncClient(trust_env=False) as client:
            for action in await request.json() or []:
                if (call := current_gateway_call()) is not None:
                    with call.attempt():
                        await _post(action, client)
                else:
                    with _span(extract(request.scope["headers"])):
                        await _post(action, wrap_httpx(client, gateways))
        return JSONResponse({})

    app = Starlette(routes=[Route("/test", serve, methods=["POST"])])
    return GatewayTracingMiddleware(
        app, exporter, is_call=lambda scope: True, endpoint="w3c", upstream_gateways=gateways
    )
