"""GatewayTracingMiddleware on real applications: the facts it reads, and that it changes nothing."""

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agent_gateway_client.server import GatewayTracingMiddleware, current_gateway_call
from agent_gateway_client.server.call import Cost, TokenUsage
from tests.support.asgi import Mirrors
from tests.support.middleware import APPS, ENCODINGS, REQUEST, TRACED, answer, fastapi_app, post, spans_of
from tests.support.served import Served
from tests.support.server import PARENT, SPAN_ID, assert_told, facts_of
from tests.support.wire_samples import CANARY, CHAT, CHAT_FACTS, MODEL, SAMPLES, TEXT


@pytest.mark.parametrize("encoding", [None, *ENCODINGS])
@pytest.mark.parametrize("framework", APPS)
@pytest.mark.parametrize("name", SAMPLES)
async def test_a_call_is_known_from_what_passes(name: str, framework: str, encoding: str | None, mirrors: Mirrors):
    """Endpoint, model, tokens, finish reason, status and streaming are read for every format without configuration."""
    sample = SAMPLES[name]
    app = APPS[framework](sample, encoding)
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    response = await post(app, sample.path)
    assert response.content == sample.body
    assert response.headers.get("content-encoding") == encoding

    (gateway, of_call), (attempt, of_attempt) = spans_of(mirrors)
    assert gateway == "gateway/chat"
    assert attempt == f"provider/{sample.facts.model}"
    assert of_call["endpoint_name"] == "chat"
    assert_told(of_call, {"http.response.status_code": 200, "gen_ai.request.stream": sample.streaming})
    assert ("gen_ai.response.time_to_first_chunk" in of_call) is sample.streaming
    assert of_call["mlflow.gateway.requestType"] in sample.path
    assert of_attempt["mlflow.llm.model"] == sample.facts.model
    usage = sample.facts.usage
    # MLflow does not count reasoning tokens.
    names = set(TokenUsage.__slots__) - {"reasoning_output_tokens"}
    known = {name: count for name in names if (count := getattr(usage, name, None))}
    assert of_attempt.get("mlflow.chat.tokenUsage", {}) == known
    reason = sample.facts.finish_reason
    assert_told(of_attempt, {"gen_ai.response.finish_reasons": [reason] if reason else None})
    first, second = mirrors.spans
    assert first.parent.span_id == SPAN_ID
    assert (second.parent.span_id, second.start_time, second.end_time) == (
        first.context.span_id,
        first.start_time,
        first.end_time,
    )


def raw_exchange(url: str, path: str, headers: dict[str, str]) -> bytes:
    """Send a request over a socket and return every byte of the answer except its date."""
    body = json.dumps(REQUEST).encode()
    lines = [f"POST {path} HTTP/1.1", "host: gw", "connection: close", f"content-length: {len(body)}"]
    lines += ["content-type: application/json", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return b"\r\n".join(line for line in received.split(b"\r\n") if not line.lower().startswith(b"date:"))


@pytest.mark.parametrize("framework", APPS)
@pytest.mark.parametrize("name", ["chat", "chat stream", "message stream"])
def test_every_byte_on_the_wire_is_the_same(name: str, framework: str, mirrors: Mirrors):
    """On a real server, header lines, chunk boundaries and bytes are the application's own."""
    sample = SAMPLES[name]
    app = APPS[framework](sample)
    with Served(app) as url:
        without = raw_exchange(url, sample.path, TRACED)
    # Each event was its own chunk: the length of the first comes before it.
    assert not sample.streaming or b"\r\n%x\r\n%s\r\n" % (len(sample.chunks[0]), sample.chunks[0]) in without
    app = APPS[framework](sample)
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    with Served(app) as url:
        assert raw_exchange(url, sample.path, TRACED) == without
        assert raw_exchange(url, sample.path, {}) == without
    assert [name for name, _ in spans_of(mirrors)] == ["gateway/chat", f"provider/{sample.facts.model}"]


async def test_headers_that_can_be_read_once(mirrors: Mirrors):
    """ASGI allows headers to be any iterable; the server gets them all, and the content type is known."""
    sample = SAMPLES["chat"]
    headers = [(b"content-type", b"application/json"), (b"x-kept", b"1")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": iter(headers)})
        await send({"type": "http.response.body", "body": sample.body})

    response = await post(GatewayTracingMiddleware(app, mirrors.exporter), sample.path)
    assert response.headers["x-kept"] == "1"
    assert len(spans_of(mirrors)) == 2


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_a_failed_call(status: int, mirrors: Mirrors):
    """A failed call is recorded by its status; neither its body nor the requested model is used."""

    async def serve(request: Any) -> Response:
        current_gateway_call().caller_is_known = True  # type: ignore[union-attr]
        return JSONResponse({"error": {"message": TEXT}, "model": CANARY, "usage": {"prompt_tokens": 1}}, status)

    app = Starlette(routes=[Route(CHAT, serve, methods=["POST"])])
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    assert (await post(app, CHAT, json={"model": CANARY})).status_code == status
    ((name, facts),) = spans_of(mirrors)
    assert name == "gateway/chat/completions"
    assert (facts["error.type"], facts["http.response.status_code"]) == (str(status), status)


async def test_an_exception(mirrors: Mirrors):
    """The application's exception is raised unchanged, and only its class is recorded."""

    async def serve(request: Any) -> Response:
        raise ValueError(TEXT)

    app = Starlette(routes=[Route(CHAT, serve, methods=["POST"])])
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    with pytest.raises(ValueError, match=CANARY):
        await post(app, CHAT)
    ((_, facts),) = spans_of(mirrors)
    assert facts["error.type"] == "ValueError"


async def test_a_stream_that_fails_inside_a_200(mirrors: Mirrors):
    """An error event fails call and attempt, with the facts known so far."""
    chunks = [*SAMPLES["chat stream"].chunks[:2], b'data: {"error": {"type": "server_error", "message": "%s"}}\n\n']
    sample = SAMPLES["chat stream"]._replace(chunks=[c.replace(b"%s", CANARY.encode()) for c in chunks])
    app = fastapi_app(sample)
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    await post(app, CHAT)
    assert [(name, facts["error.type"]) for name, facts in spans_of(mirrors)] == [
        ("gateway/chat", "server_error"),
        (f"provider/{MODEL}", "server_error"),
    ]
    assert [span.status.is_ok for span in mirrors.spans] == [False, False]


async def test_what_the_application_says_goes_first(mirrors: Mirrors):
    """The application's attempts take precedence; the response fills in what they leave out."""
    app = FastAPI()

    @app.post(CHAT)
    async def serve(body: dict[str, Any]) -> Any:
        call = current_gateway_call()
        assert call is not None
        call.endpoint, call.cache_hit = "from the application", False
        with pytest.raises(ConnectionError), call.attempt(provider="openai", model="first"):
            raise ConnectionError(TEXT)
        with call.attempt(provider="azure", model="second") as attempt:
            attempt.cost = Cost(0.25, 0.5, 0.75)
        return answer(SAMPLES["chat stream"])

    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter, endpoint="ours", provider="not asked")
    await post(app, CHAT)
    (gateway, _), (first, failed), (second, answered) = spans_of(mirrors)
    assert gateway == "gateway/from_the_application"
    assert (first, failed["error.type"]) == ("provider/openai/first", "ConnectionError")
    assert "mlflow.chat.tokenUsage" not in failed
    assert second == "provider/azure/second"
    assert answered["mlflow.llm.cost"]["total_cost"] == 0.75
    assert answered["mlflow.chat.tokenUsage"]["total_tokens"] == CHAT_FACTS.usage.total_tokens  # type: ignore[union-attr]
    assert answered["gen_ai.response.finish_reasons"] == [CHAT_FACTS.finish_reason]


async def test_a_failed_last_attempt_gets_nothing_of_the_answer(mirrors: Mirrors):
    """If the application answers by itself after a provider failed, the tokens are not that provider's."""
    app = FastAPI()

    @app.post(CHAT)
    async def serve(body: dict[str, Any]) -> Any:
        with pytest.raises(TimeoutError), current_gateway_call().attempt("openai", "m"):  # type: ignore[union-attr]
            raise TimeoutError
        return answer(SAMPLES["chat"])

    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    await post(app, CHAT)
    (gateway, of_call), (_, failed) = spans_of(mirrors)
    assert (gateway, "error.type" in of_call) == ("gateway/chat", False)
    assert (failed["error.type"], "mlflow.chat.tokenUsage" in failed) == ("TimeoutError", False)


@pytest.mark.parametrize("ends", ["cancelled", "left open"])
async def test_the_winner_of_attempts_side_by_side_gets_the_tokens(ends: str, mirrors: Mirrors):
    """An application asks two providers at once, uses the faster answer and abandons the other."""
    app = FastAPI()

    @app.post(CHAT)
    async def serve(body: dict[str, Any]) -> Any:
        call = current_gateway_call()
        assert call is not None
        winner, loser = call.attempt("openai", "quick"), call.attempt("azure", "slow")
        winner.end()
        if ends == "cancelled":
            loser.end(asyncio.CancelledError())
        return answer(SAMPLES["chat"])

    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    await post(app, CHAT)
    _, (_, winner), (_, loser) = spans_of(mirrors)
    assert winner["mlflow.chat.tokenUsage"]["total_tokens"] == CHAT_FACTS.usage.total_tokens  # type: ignore[union-attr]
    assert "mlflow.chat.tokenUsage" not in loser


async def test_many_callers_at_once(mirrors: Mirrors):
    """Of a hundred concurrent requests with different models, none gets another's facts."""
    app = FastAPI()

    @app.post(CHAT)
    async def serve(request: Request) -> Any:
        asked = await request.json()
        return {"model": asked["model"], "usage": {"prompt_tokens": asked["number"], "completion_tokens": 1}}

    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gw:5000") as client:

        async def call(number: int) -> None:
            headers = {"traceparent": PARENT._replace(span_id=number).traceparent}
            await client.post(CHAT, headers=headers, json={"model": f"m-{number}", "number": number})

        await asyncio.gather(*(call(number) for number in range(1, 101)))
    spans = mirrors.spans
    parents = {span.context.span_id: span.parent.span_id for span in spans if span.name.startswith("gateway/")}
    assert sorted(parents.values()) == list(range(1, 101))
    for span in spans:
        number = parents.get(span.context.span_id) or parents[span.parent.span_id]
        assert span.name.endswith(f"/m-{number}")
        assert facts_of(span).get("mlflow.chat.tokenUsage", {}).get("input_tokens", number) == number
