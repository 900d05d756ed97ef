"""An LLM gateway in FastAPI: names for models, a fallback, and streams. Only a few of its lines are about tracing."""

import os
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

from agent_gateway_client.server import GatewayTracingMiddleware, current_gateway_call, gateway_attempt

PROVIDER_URL = os.environ.get("PROVIDER_URL", "https://api.openai.com/v1")
PROVIDER_KEY = os.environ.get("PROVIDER_KEY", "none")
MODELS = {
    "chat": ["gpt-4o-mini"],
    "fallback": ["gpt-4o-fail-503", "gpt-4o-mini"],
    "embeddings": ["text-embedding-3-small"],
}
"""Names for callers, and the provider's models behind them in the order in which they are tried."""

app = FastAPI()
app.add_middleware(GatewayTracingMiddleware)
provider = httpx.AsyncClient(headers={"authorization": f"Bearer {PROVIDER_KEY}"}, timeout=120)


@app.post("/v1/{operation:path}")
async def call(operation: str, request: Request) -> StreamingResponse:
    body = await request.json()
    if body.get("model") not in MODELS:
        raise HTTPException(404, "There is no such model here.")
    if gateway_call := current_gateway_call():
        gateway_call.endpoint = body["model"]
    for model in MODELS[body["model"]]:
        attempt = gateway_attempt(provider="openai", model=model)
        upstream = provider.build_request("POST", f"{PROVIDER_URL}/{operation}", json={**body, "model": model})
        try:
            response = await provider.send(upstream, stream=True)
        except httpx.TransportError as error:
            attempt.end(error)
            continue
        if response.status_code < 500:
            headers = {name: response.headers[name] for name in ("content-type",) if name in response.headers}
            return StreamingResponse(decoded(response), response.status_code, headers)
        attempt.end(str(response.status_code))
        await response.aclose()
    raise HTTPException(502, "No model could answer.")


async def decoded(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_bytes():
            yield chunk
    finally:
        await response.aclose()
