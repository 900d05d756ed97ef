"""An LLM gateway in Flask: names for models, a fallback, and streams. Only a few of its lines are about tracing."""

import os
from collections.abc import Iterator

import httpx
from flask import Flask, Response, abort, request

from agent_gateway_client.server import GatewayTracingWSGIMiddleware, current_gateway_call, gateway_attempt

PROVIDER_URL = os.environ.get("PROVIDER_URL", "https://api.openai.com/v1")
PROVIDER_KEY = os.environ.get("PROVIDER_KEY", "none")
MODELS = {
    "chat": ["gpt-4o-mini"],
    "fallback": ["gpt-4o-fail-503", "gpt-4o-mini"],
    "embeddings": ["text-embedding-3-small"],
}
"""Names for callers, and the provider's models behind them in the order in which they are tried."""

app = Flask("gateway")
app.wsgi_app = GatewayTracingWSGIMiddleware(app.wsgi_app)
provider = httpx.Client(headers={"authorization": f"Bearer {PROVIDER_KEY}"}, timeout=120)


@app.post("/v1/<path:operation>")
def call(operation: str) -> Response:
    body = request.get_json()
    if body.get("model") not in MODELS:
        abort(404, "There is no such model here.")
    if gateway_call := current_gateway_call():
        gateway_call.endpoint = body["model"]
    for model in MODELS[body["model"]]:
        attempt = gateway_attempt(provider="openai", model=model)
        upstream = provider.build_request("POST", f"{PROVIDER_URL}/{operation}", json={**body, "model": model})
        try:
            response = provider.send(upstream, stream=True)
        except httpx.TransportError as error:
            attempt.end(error)
            continue
        if response.status_code < 500:
            return Response(decoded(response), response.status_code, content_type=response.headers.get("content-type"))
        attempt.end(str(response.status_code))
        response.close()
    return Response("No model could answer.", 502)


def decoded(response: httpx.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_bytes()
    finally:
        response.close()
