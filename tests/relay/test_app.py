"""The relay over HTTP: the answers that OTLP's clients understand."""

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from agent_gateway_client.relay import Limits, Relay
from agent_gateway_client.relay.collect import Collection
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.observed.companion import Companion
from tests.support.otlp_spans import Clock, Sink, attempt, json_body, protobuf_body, root
from tests.support.server import MemoryDestination

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}
CALL = [root(), attempt(2)]
LIMITS = Limits(body_bytes=50_000, json_containers=500, request_spans=3, spans=4)


class Served:
    """A relay and a client for it."""

    def __init__(self, token: str | None = None) -> None:
        self.sink = Sink()
        self.clock = Clock()
        self.relay = Relay(self.sink, token=token, limits=LIMITS, collection=Collection(LIMITS, self.clock))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.relay), base_url="http://relay")

    async def post(
        self, body: bytes, headers: dict[str, str] | None = None, path: str = "/v1/traces"
    ) -> httpx.Response:
        return await self.client.post(path, content=body, headers=headers or PROTOBUF)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A relay without a token."""
    served = Served()
    yield served
    served.relay.close()
    await served.client.aclose()


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("encode", "headers"), [(protobuf_body, PROTOBUF), (json_body, JSON)], ids=["protobuf", "JSON"]
)
async def test_spans_are_taken(served: Served, encode: Any, headers: dict[str, str], compressed: bool):
    """Both encodings are accepted, plain and with gzip. The answer is empty and has the content type of the request."""
    body = encode(CALL)
    if compressed:
        body, headers = gzip.compress(body, mtime=0), {**headers, "content-encoding": "gzip"}
    answer = await served.post(body, headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, headers["content-type"])
    assert answer.content in (b"", b"{}")
    served.relay.close()
    (call,) = served.sink.calls
    assert [one.span_id for one in call.attempts] == [2]


async def test_partial_success_in_protobuf(served: Served):
    """The answer counts the rejected spans."""
    answer = await served.post(protobuf_body([root(number) for number in range(1, 6)]))
    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, partial.rejected_spans) == (200, 2)
    assert partial.error_message


async def test_partial_success_in_json(served: Served):
    """The count is a string, as JSON has 64-bit numbers."""
    answer = await served.post(json_body([root(number) for number in range(1, 6)]), JSON)
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "2"


async def test_spans_that_are_not_recognised_are_not_rejected(served: Served):
    """A gateway sends many spans that are not model calls. Its log must not fill up with them."""
    assert (await served.post(protobuf_body([root()]))).content == b""
    health = (await served.client.get("/health")).json()
    assert (health["unrecognised"], health.get("recognised", 0)) == (1, 0)


@pytest.mark.parametrize(
    ("status", "body", "headers", "path"),
    [
        (400, b"\xff", PROTOBUF, "/v1/traces"),
        (400, b"{", JSON, "/v1/traces"),
        (400, b"no gzip", {**PROTOBUF, "content-encoding": "gzip"}, "/v1/traces"),
        (404, b"", PROTOBUF, "/v1/metrics"),
        (413, b"\0" * 50_001, PROTOBUF, "/v1/traces"),
        (413, gzip.compress(b"\0" * 50_001, mtime=0), {**PROTOBUF, "content-encoding": "gzip"}, "/v1/traces"),
        (413, b"[" * 501, JSON, "/v1/traces"),
        (415, b"", {"content-type": "text/plain"}, "/v1/traces"),
        (415, b"", {**PROTOBUF, "content-encoding": "zstd"}, "/v1/traces"),
    ],
)
async def test_refusals(served: Served, status: int, body: bytes, headers: dict[str, str], path: str):
    """Each refusal has its status and a sentence in OTLP's form, and nothing is held."""
    answer = await served.post(body, headers, path)
    assert answer.status_code == status
    if headers["content-type"] == "application/x-protobuf":
        assert answer.content[:1] == b"\x12"
        assert len(answer.content) == answer.content[1] + 2
    else:
        assert json.loads(answer.content)["message"]
    assert served.relay.collection.held == 0


async def test_a_body_in_pieces_that_is_too_large(served: Served):
    """The limit also applies to a body without a content length."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield b"\0" * 1000

    assert (await served.client.post("/v1/traces", content=pieces(), headers=PROTOBUF)).status_code == 413


async def test_get(served: Served):
    """The answer names the right method."""
    answer = await served.client.get("/v1/traces")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_a_full_relay(served: Served):
    """The answer is 429 with a Retry-After. Once old unfinished spans can be dropped, the next request is accepted."""
    for number in (1, 2):
        await served.post(protobuf_body([root(number), attempt(number + 10, number)]))
    answer = await served.post(protobuf_body(CALL))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert (await served.client.get("/health")).json()["spans_held"] == 4
    served.clock.now += 20
    assert (await served.post(protobuf_body(CALL))).status_code == 200


async def test_a_store_that_is_away_for_long(served: Served):
    """Senders wait, so that the exporter need not drop its oldest calls."""
    relay = Relay(served.sink, is_full=lambda: True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(relay), base_url="http://relay") as client:
        answer = await client.post("/v1/traces", content=protobuf_body(CALL), headers=PROTOBUF)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")


async def test_a_relay_that_stops(served: Served):
    """It sends what it holds, and refuses new requests in a way that makes clients retry."""
    await served.post(protobuf_body(CALL))
    served.relay.close()
    assert (len(served.sink.calls), served.sink.flushed) == (1, 1)
    answer = await served.post(protobuf_body(CALL))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert (await served.client.get("/health")).status_code == 503


@pytest.mark.parametrize(
    ("authorization", "status"), [(None, 401), ("Bearer wrong", 401), ("secret", 401), ("bearer secret", 200)]
)
async def test_a_token(authorization: str | None, status: int):
    """Without it a request is refused before its body is read. GET /health needs no token."""
    served = Served(token="secret")
    headers = PROTOBUF if authorization is None else {**PROTOBUF, "authorization": authorization}
    answer = await served.post(protobuf_body(CALL), headers)
    assert answer.status_code == status
    assert (answer.headers.get("www-authenticate") == "Bearer") is (status == 401)
    assert (await served.client.get("/health")).status_code == 200
    served.relay.close()
    assert len(served.sink.calls) == (status == 200)


@pytest.mark.parametrize("path", ["/agent-gateway/status", "/agent-gateway/metrics"])
async def test_the_pages_of_the_companion(path: str):
    """Only senders with the token see what became of the calls. Without a companion there are no such pages."""
    exporter = Exporter(MemoryDestination())
    relay = Relay(exporter, token="secret", companion=Companion(exporter))
    plain = Relay(Sink(), token="secret")
    opened = {"authorization": "Bearer secret"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(relay), base_url="http://relay") as client:
        assert (await client.get(path)).status_code == 401
        answer = await client.get(path, headers=opened)
        await client.post("/v1/traces", content=b"", headers=PROTOBUF)
        status = (await client.get("/agent-gateway/status", headers=opened)).json()
    assert answer.status_code == 200
    assert (status["waiting"], status["problem"], status["relay"]["refused"]) == (0, None, {"401": 1})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(plain), base_url="http://relay") as client:
        assert (await client.get(path, headers=opened)).status_code == 404
    exporter.shutdown()


async def test_calls_are_submitted_without_a_further_request():
    """A thread submits a call once its spans have settled."""
    sink = Sink()
    limits = Limits(settle_seconds=0.05)
    relay = Relay(sink, limits=limits)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(relay), base_url="http://relay") as client:
        await client.post("/v1/traces", content=protobuf_body(CALL), headers=PROTOBUF)
        await sink.wait_for(1)
    relay.close()


async def test_mounted_in_another_application():
    """It works below a path and without a lifespan."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    sink = Sink()
    relay = Relay(sink)
    app = Starlette(routes=[Mount("/otlp", relay)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://relay") as client:
        answer = await client.post("/otlp/v1/traces", content=protobuf_body(CALL), headers=PROTOBUF)
    assert answer.status_code == 200
    relay.close()
    assert len(sink.calls) == 1


async def test_its_lifespan_sends_what_is_held():
    """uvicorn announces the shutdown there."""
    sink = Sink()
    relay = Relay(sink)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(relay), base_url="http://relay") as client:
        await client.post("/v1/traces", content=protobuf_body(CALL), headers=PROTOBUF)
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await relay({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(sink.calls) == 1
