"""wsgi.py: the facts that the middleware reads about a WSGI gateway, and that it changes nothing."""

import socket
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx
import pytest
from flask import Flask, Response, request
from werkzeug.serving import make_server
from werkzeug.test import Client, EnvironBuilder

from agent_gateway_client.server import GatewayTracingWSGIMiddleware, current_gateway_call, gateway_attempt
from tests.support.asgi import Mirrors
from tests.support.middleware import REQUEST, spans_of
from tests.support.server import DEADLINE_S, PARENT, TRACEPARENT, ids_of
from tests.support.wire_samples import CHAT, SAMPLES, Sample

TRACED = {"traceparent": TRACEPARENT}


def flask_app(sample: Sample, status: int = 200) -> Flask:
    """Return a gateway that answers with a sample, a stream event by event."""
    app = Flask("gateway")

    @app.post("/<path:path>")
    def serve(path: str) -> Response:
        assert request.get_json()
        if sample.streaming:
            return Response((chunk for chunk in sample.chunks), status, content_type="text/event-stream")
        return Response(sample.body, status, content_type="application/json")

    return app


def post(app: Any, mirrors: Mirrors, path: str = CHAT, headers: dict[str, str] = TRACED, **options: Any) -> Any:
    """Send a request through the middleware, without a server."""
    middleware = GatewayTracingWSGIMiddleware(app, mirrors.exporter, **options)
    return Client(middleware).post(path, json=REQUEST, headers=headers, buffered=True)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_facts_of_a_call(name: str, mirrors: Mirrors):
    """Model, tokens and finish reason are read from the response as under ASGI, and the bytes pass unchanged."""
    sample = SAMPLES[name]
    response = post(flask_app(sample), mirrors, sample.path)
    assert response.data == sample.body
    (gateway, of_call), (attempt, of_attempt) = spans_of(mirrors)
    assert gateway == "gateway/chat"
    assert ids_of(mirrors.spans[0])[1] == PARENT.span_id
    assert attempt == f"provider/{sample.facts.model}"
    assert of_call.get("gen_ai.request.stream", False) is sample.streaming
    usage = sample.facts.usage
    assert of_attempt.get("mlflow.chat.tokenUsage", {}).get("total_tokens") == (usage and usage.total_tokens)
    assert sample.streaming is ("gen_ai.response.time_to_first_chunk" in of_call)


def test_what_the_application_says(mirrors: Mirrors):
    """The call is current in the view and in the generator of a stream, and nowhere else."""
    app = Flask("gateway")

    @app.post(CHAT)
    def serve() -> Response:
        def chunks() -> Iterator[bytes]:
            call = current_gateway_call()
            assert call is not None
            call.endpoint = "ours"
            with gateway_attempt("openai", "m"):
                yield from SAMPLES["chat stream"].chunks

        assert current_gateway_call() is not None
        return Response(chunks(), content_type="text/event-stream")

    post(app, mirrors)
    assert current_gateway_call() is None
    assert [name for name, _ in spans_of(mirrors)] == ["gateway/ours", "provider/openai/m"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": f"{TRACEPARENT[:-1]}0"},
        {"traceparent": "nonsense"},
        {"traceparent": f"{TRACEPARENT},{TRACEPARENT}"},
    ],
)
def test_a_caller_that_is_not_tracing(headers: dict[str, str], mirrors: Mirrors):
    """The answer is the same, and there is no mirror."""
    assert post(flask_app(SAMPLES["chat"]), mirrors, headers=headers).data == SAMPLES["chat"].body
    assert mirrors.spans == []


def test_other_requests_are_none_of_its_business(mirrors: Mirrors):
    """The application serves other routes directly."""
    assert post(flask_app(SAMPLES["chat"]), mirrors, "/v1/other").status_code == 200
    assert mirrors.spans == []


@pytest.mark.parametrize(("status", "error"), [(401, None), (404, None), (422, None), (500, "500"), (503, "503")])
def test_failures_and_refusals(status: int, error: str | None, mirrors: Mirrors):
    """A failure is mirrored with its status; a rejected request without an attempt is not mirrored."""
    assert post(flask_app(SAMPLES["chat"], status), mirrors).status_code == status
    assert [facts["error.type"] for _, facts in spans_of(mirrors)] == ([error] if error else [])


@pytest.mark.parametrize("where", ["call", "iteration"])
def test_an_exception_goes_on(where: str, mirrors: Mirrors):
    """The application's exception reaches the server, and its class is the error type."""

    def app(environ: Any, start_response: Any) -> Any:
        if where == "call":
            raise ConnectionResetError("canary")
        start_response("200 OK", [("Content-Type", "text/event-stream")])

        def chunks() -> Iterator[bytes]:
            yield b"data: 1\n\n"
            raise ConnectionResetError("canary")

        return chunks()

    with pytest.raises(ConnectionResetError):
        post(app, mirrors)
    ((_, facts),) = spans_of(mirrors)
    assert facts["error.type"] == "ConnectionResetError"


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_a_list_of_chunks(chunks: int, mirrors: Mirrors):
    """A list is passed on chunk by chunk. If the server closes it before its end, the client has disconnected."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"one", b"two"]

    environ = {**EnvironBuilder(CHAT, method="POST").get_environ(), "HTTP_TRACEPARENT": TRACEPARENT}
    response = GatewayTracingWSGIMiddleware(app, mirrors.exporter)(environ, lambda *arguments: None)
    assert len(response) == 2
    assert list(islice(response, chunks)) == [b"one", b"two"][:chunks]
    response.close()
    ((_, facts),) = spans_of(mirrors)
    assert facts.get("error.type") == ("client_disconnect" if chunks < 3 else None)


def test_chunks_that_are_written(mirrors: Mirrors):
    """Chunks that the application passes to WSGI's write() are part of the response."""
    written: list[bytes] = []

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "application/json")])(SAMPLES["chat"].body)
        return []

    environ = {**EnvironBuilder(CHAT, method="POST").get_environ(), "HTTP_TRACEPARENT": TRACEPARENT}
    assert list(GatewayTracingWSGIMiddleware(app, mirrors.exporter)(environ, lambda *arguments: written.append)) == []
    assert written == [SAMPLES["chat"].body]
    assert [name for name, _ in spans_of(mirrors)][1:] == [f"provider/{SAMPLES['chat'].facts.model}"]


def test_an_untraced_request_is_passed_on_as_it_is(mirrors: Mirrors):
    """The application gets the server's own environ and start_response."""
    environ = EnvironBuilder(CHAT, method="POST").get_environ()
    response: list[bytes] = []
    app = GatewayTracingWSGIMiddleware(lambda *arguments: response.extend(arguments) or response, mirrors.exporter)
    assert app(environ, print) is response
    assert response[0] is environ
    assert response[1] is print


@pytest.mark.parametrize("complete", [False, True])
def test_a_client_that_hangs_up(complete: bool, mirrors: Mirrors):
    """If a server closes a stream early, the client has disconnected, unless it had the last event."""
    closed = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        try:
            yield b"data: [DONE]\n\n" if complete else b"data: 1\n\n"
            while True:
                yield b": still there\n\n"
        finally:
            closed.set()

    middleware = GatewayTracingWSGIMiddleware(app, mirrors.exporter)
    server = make_server("127.0.0.1", 0, middleware, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ntraceparent: {TRACEPARENT}\r\n\r\n".encode())
            assert connection.recv(10)
        assert closed.wait(DEADLINE_S)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    ((_, facts),) = spans_of(mirrors)
    assert complete or facts["error.type"] == "client_disconnect"


@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_who_may_join(who: str, mirrors: Mirrors):
    """The predicate gets the environ after the request was served."""
    app = flask_app(SAMPLES["chat"])
    headers = {**TRACED, "x-tenant": who}
    post(app, mirrors, headers=headers, may_join=lambda environ: environ["HTTP_X_TENANT"] == "ours")
    assert bool(mirrors.spans) is (who == "ours")


@pytest.mark.parametrize("option", ["is_call", "endpoint", "may_join"])
def test_an_option_that_raises(option: str, mirrors: Mirrors):
    """The request is served if an option's function raises."""
    app = flask_app(SAMPLES["chat"])
    assert post(app, mirrors, **{option: lambda environ: environ["no such key"]}).data == SAMPLES["chat"].body


def test_the_probe(mirrors: Mirrors):
    """A probe is answered, and the application does not see its header."""
    app = flask_app(SAMPLES["chat"])
    app.before_request(lambda: None if "agent-gateway-probe" not in request.headers else ("asked", 500))
    response = post(app, mirrors, headers={**TRACED, "agent-gateway-probe": "1"})
    assert TRACEPARENT in response.headers["agent-gateway-companion"]


def test_many_callers_at_once(mirrors: Mirrors):
    """Threads serve requests concurrently; none gets another's facts."""
    app = Flask("gateway")

    @app.post(CHAT)
    def serve() -> Any:
        with gateway_attempt("openai", request.get_json()["model"]):
            return {"model": request.get_json()["model"], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    server = make_server("127.0.0.1", 0, GatewayTracingWSGIMiddleware(app, mirrors.exporter), threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    url = f"http://127.0.0.1:{server.server_port}{CHAT}"
    try:
        asking = [
            threading.Thread(target=httpx.post, args=(url,), kwargs={"json": {"model": f"m{n}"}, "headers": TRACED})
            for n in range(20)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    names = [span.name for span in mirrors.spans]
    assert sorted(names) == sorted(f"{kind}m{n}" for n in range(20) for kind in ("gateway/", "provider/openai/"))
