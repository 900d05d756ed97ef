"""A reverse proxy that changes what passes, to imitate a proxy or an old or protected server."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Headers = list[tuple[str, str]]

_OF_THE_CONNECTION = {"connection", "content-encoding", "content-length", "host", "keep-alive", "transfer-encoding"}


def meddler(
    target: str,
    *,
    change: Callable[[Headers], Headers] = lambda headers: headers,
    answers: Mapping[str, tuple[int, str]] | None = None,
    kept_back: frozenset[str] = frozenset(),
) -> Starlette:
    """Return a reverse proxy.

    Args:
        target: The server behind it.
        change: Returns the headers of the forwarded request.
        answers: Answers that it gives itself, by the end of the path: status and body.
        kept_back: Names of response headers that it removes, in lower case.
    """

    async def serve(request: Request) -> Response:
        for path, (status, text) in (answers or {}).items():
            if request.url.path.endswith(path):
                return Response(text, status, media_type="application/json")
        headers = [(name, value) for name, value in request.headers.items() if name not in _OF_THE_CONNECTION]
        response = await request.app.state.client.request(
            request.method,
            request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            headers=change(headers),
            content=await request.body(),
        )
        dropped = _OF_THE_CONNECTION | kept_back
        passed = {name: value for name, value in response.headers.items() if name not in dropped}
        return Response(response.content, response.status_code, passed)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=target, timeout=60, trust_env=False) as client:
            app.state.client = client
            yield

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return Starlette(routes=[Route("/{path:path}", serve, methods=methods)], lifespan=lifespan)


def without(*names: str) -> Callable[[Headers], Headers]:
    """Return a function that removes headers."""
    return lambda headers: [header for header in headers if header[0] not in names]


def replacing(name: str, value: str) -> Callable[[Headers], Headers]:
    """Return a function that replaces a header's value."""
    return lambda headers: [(key, value if key == name else old) for key, old in headers]


def gateway_app(provider_url: str, change_answer: Callable[[dict[str, Any]], Any] = lambda answer: answer) -> Starlette:
    """Return a gateway other than MLflow's, in front of the local model provider.

    Args:
        provider_url: The provider's.
        change_answer: Modifies the provider's answer in place.
    """

    async def chat(request: Request) -> Response:
        body = await request.json()
        if "model" not in body:
            return Response('{"error": "no model is named"}', 400, media_type="application/json")
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            answer = (await client.post(f"{provider_url}/v1/chat/completions", json=body)).json()
        change_answer(answer)
        return Response(httpx.Response(200, json=answer).content, media_type="application/json")

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
