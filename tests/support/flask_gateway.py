"""A gateway on Flask with a threaded server."""

from collections.abc import Iterator
from typing import Any

import httpx
from flask import Flask, Response, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from agent_gateway_client.server import (
    GatewayTracingWSGIMiddleware,
    current_gateway_call,
    gateway_attempt,
    gateway_call,
    relayed,
)
from agent_gateway_client.server.export import Exporter
from tests.support.gateways import MODELS


def flask_server(provider_url: str, exporter: Exporter) -> BaseWSGIServer:
    """Return a server of the gateway on a free port of 127.0.0.1."""
    app = Flask("gateway")

    @app.post("/v1/<path:operation>")
    def serve(operation: str) -> Response:
        parts = answer_parts(f"{provider_url}/v1/{operation}", list(request.headers), request.get_json(), exporter)
        status, content_type = next(parts)
        return Response(parts, status, content_type=content_type)

    return make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Handler)


def wsgi_server(provider_url: str, exporter: Exporter) -> BaseWSGIServer:
    """Return a server of a gateway with the WSGI middleware, on a free port of 127.0.0.1."""
    app = Flask("gateway")
    app.wsgi_app = GatewayTracingWSGIMiddleware(app.wsgi_app, exporter)  # type: ignore[method-assign]

    @app.post("/v1/<path:operation>")
    def serve(operation: str) -> Response:
        body = request.get_json()
        call = current_gateway_call()
        if call is not None:
            call.caller_is_known = True
            call.endpoint = body["model"] if body["model"] in MODELS else None
        for model in MODELS.get(body["model"], ()):
            attempt = gateway_attempt("openai", model)
            answer = _provider.send(
                _provider.build_request("POST", f"{provider_url}/v1/{operation}", json={**body, "model": model}),
                stream=True,
            )
            if answer.is_success:
                return Response(_read(answer), 200, content_type=answer.headers["content-type"])
            attempt.end(str(answer.status_code))
            answer.close()
        return Response(b"{}", 502 if body["model"] in MODELS else 404, content_type="application/json")

    return make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Handler)


_provider = httpx.Client(timeout=60)


def _read(answer: httpx.Response) -> Iterator[bytes]:
    try:
        yield from answer.iter_bytes()
    finally:
        answer.close()


def answer_parts(url: str, headers: Any, body: Any, exporter: Exporter) -> Iterator[Any]:
    """Serve one request; yields status and content type, and then the body."""
    endpoint = body["model"] if body["model"] in MODELS else None
    with gateway_call(headers, endpoint=endpoint, exporter=exporter) as call:
        for model in MODELS.get(body["model"], ()):
            upstream = httpx.stream("POST", url, json={**body, "model": model}, timeout=60)
            with call.attempt("openai", model) as attempt, upstream as answer:
                call.http_status, content_type = answer.status_code, answer.headers["content-type"]
                if answer.is_success:
                    yield answer.status_code, content_type
                    is_stream = content_type.startswith("text/event-stream")
                    yield from relayed(call, answer.iter_bytes(), streaming=is_stream)
                    return
                attempt.end(str(answer.status_code))
        call.http_status = 502 if endpoint else 404
        yield call.http_status, "application/json"
        yield b"{}"


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass
