"""Small gateways that answer with the samples, and functions that send a request to one."""

import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.support.asgi import Mirrors
from tests.support.server import TRACEPARENT, facts_of
from tests.support.wire_samples import CANARY, TEXT, Sample

TRACED = {"traceparent": TRACEPARENT}
REQUEST = {"model": "chat", "messages": [{"role": "user", "content": TEXT}]}
ENCODINGS = {"gzip": 31, "deflate": 15}
"""Content encodings, and zlib's window sizes for them."""


def answer(sample: Sample, encoding: str | None = None) -> Response:
    """Return a sample as the response that a gateway relays; a stream is sent event by event, compressed or not."""
    chunks = list(sample.chunks)
    headers = {"content-encoding": encoding} if encoding else {}
    if encoding:
        packer = zlib.compressobj(wbits=ENCODINGS[encoding])
        chunks = [packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH) for chunk in chunks]
        chunks[-1] += packer.flush()

    async def sent() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    if sample.streaming:
        return StreamingResponse(sent(), media_type="text/event-stream", headers=headers)
    return Response(b"".join(chunks), media_type="application/json", headers=headers)


def starlette_app(sample: Sample, encoding: str | None = None) -> Starlette:
    async def serve(request: Any) -> Response:
        await request.json()
        return answer(sample, encoding)

    return Starlette(routes=[Route("/{path:path}", serve, methods=["POST"])])


def fastapi_app(sample: Sample, encoding: str | None = None) -> FastAPI:
    app = FastAPI()

    @app.post(sample.path)
    async def serve(body: dict[str, Any]) -> Any:
        return answer(sample, encoding)

    return app


APPS: dict[str, Callable[..., Any]] = {"starlette": starlette_app, "fastapi": fastapi_app}


async def post(app: Any, path: str, headers: dict[str, str] = TRACED, **more: Any) -> httpx.Response:
    """Send one request to an application, without a server."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gw:5000") as client:
        return await client.post(path, headers=headers, **{"json": REQUEST, **more})


def spans_of(mirrors: Mirrors) -> list[tuple[str, dict[str, Any]]]:
    """Return name and facts of all spans, after checking that none contains text of the request or response."""
    assert not any(CANARY in span.to_json() for span in mirrors.spans)
    return [(span.name, facts_of(span)) for span in mirrors.spans]
