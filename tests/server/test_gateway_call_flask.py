"""gateway_call() in a Flask gateway, served by threads."""

import json
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
from asgi_support import Mirrors
from flask import Flask, Response, request
from server_support import PARENT, facts_of
from wire_samples import CANARY, CHAT_FACTS, SAMPLES

from agent_gateway_client.server import gateway_call
from agent_gateway_client.server.details import add_response


def flask_gateway(mirrors: Mirrors) -> Flask:
    """A gateway on Flask: plain answers and streams, one endpoint that fails, and a fallback."""
    app = Flask("gateway")

    @app.post("/<endpoint>")
    def serve(endpoint: str) -> Any:
        if endpoint == "stream":
            headers = dict(request.headers)
            return Response(streamed(headers), mimetype="text/event-stream")
        with gateway_call(request.headers, endpoint=endpoint, exporter=mirrors.exporter) as call:
            return answer(endpoint, call)

    def answer(endpoint: str, call: Any) -> Any:
        if endpoint == "failing":
            call.http_status = 502
            return {"error": request.get_json()}, 502
        try:
            with call.attempt("first", "m1"):
                raise TimeoutError(CANARY)
        except TimeoutError:
            with call.attempt("second") as attempt:
                add_response(call, SAMPLES["chat"].body)
                attempt.model = f"m{request.get_json()['number']}"
        return Response(SAMPLES["chat"].body, mimetype="application/json")

    def streamed(headers: dict[str, str]) -> Iterable[bytes]:
        with gateway_call(headers, endpoint="stream", exporter=mirrors.exporter) as call:
            yield from SAMPLES["chat stream"].chunks
            add_response(call, SAMPLES["chat stream"].chunks, streaming=True)

    return app


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


def test_flask_in_threads():
    """A threaded Flask gateway under a real WSGI server: 60 callers at once, each with a mirror of its own."""
    mirrors = Mirrors()
    server = make_server("127.0.0.1", 0, flask_gateway(mirrors), ThreadingServer, _Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}", timeout=60) as client:

            def call(number: int) -> bytes:
                endpoint = ("chat", "stream", "failing")[number % 3]
                headers = {"traceparent": PARENT._replace(span_id=number).traceparent}
                return client.post(f"/{endpoint}", json={"number": number, "text": CANARY}, headers=headers).content

            with ThreadPoolExecutor(12) as pool:
                answers = list(pool.map(call, range(1, 61)))
            untraced = client.post("/chat", json={"number": 0})
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert answers[0] == SAMPLES["chat stream"].body
    assert json.loads(untraced.content) == json.loads(answers[2])
    mirrored = {span.parent.span_id: span for span in mirrors.spans if span.name.startswith("gateway/")}
    assert sorted(mirrored) == list(range(1, 61))
    for number, span in mirrored.items():
        children = [child for child in mirrors.spans if child.parent.span_id == span.context.span_id]
        expected = {
            0: ("gateway/chat", ["provider/first/m1", f"provider/second/m{number}"], None),
            1: ("gateway/stream", [f"provider/{CHAT_FACTS.model}"], None),
            2: ("gateway/failing", [], "502"),
        }[number % 3]
        assert (span.name, [child.name for child in children], facts_of(span).get("error.type")) == expected
    assert not any(CANARY in span.to_json() for span in mirrors.spans)
