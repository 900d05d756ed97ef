"""The companion's public names in typed code."""

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from typing_extensions import assert_type

from agent_gateway_client.server import (
    GatewayTracingMiddleware,
    current_gateway_call,
    gateway_attempt,
    gateway_call,
)
from agent_gateway_client.server.call import Attempt, GatewayCall, TokenUsage

app = FastAPI()
app.add_middleware(GatewayTracingMiddleware)
app.add_middleware(GatewayTracingMiddleware, endpoint=lambda scope: str(scope["path"]), provider="openai")
Starlette(middleware=[Middleware(GatewayTracingMiddleware, is_call=lambda scope: True)])

assert_type(current_gateway_call(), GatewayCall | None)


def in_a_thread(headers: dict[str, str]) -> int:
    with gateway_call(headers, endpoint="chat", operation="chat") as call:
        assert_type(call, GatewayCall)
        with call.attempt(provider="openai") as attempt:
            assert_type(attempt, Attempt)
            attempt.usage = TokenUsage(input_tokens=1)
        attempt = gateway_attempt("openai", "m")
        attempt.end("503")
        return 1


async def in_a_task(headers: list[tuple[str | bytes, str | bytes]]) -> None:
    async with gateway_call(headers) as call:
        assert_type(call, GatewayCall)
