"""What the middleware adds to a request of an ASGI gateway, compared with two OpenTelemetry spans made inline."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from opentelemetry.propagate import extract
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.export import Destination, Exporter
from agent_gateway_client.server.export.destination import Place
from agent_gateway_client.server.mirror import Convention
from benchmarks.measure import added, estimate, interleave
from benchmarks.report import Report
from benchmarks.samples import ANSWER
from benchmarks.samples import Nowhere as NowhereExporter

CALLS = 200
CHUNKS = 500
FLOOR = "floor: two OpenTelemetry spans inline"
TRACED_SHARE = 0.23
UNTRACED_SHARE = 0.02
CHUNK_SHARE = 0.0125
HEADERS = [
    (b"host", b"gateway:5000"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"OpenAI/Python 2.54.0"),
    *((b"x-stainless-" + name, b"something") for name in (b"lang", b"package-version", b"os", b"arch", b"runtime")),
    (b"authorization", b"Bearer none"),
    (b"x-stainless-async", b"false"),
    (b"x-stainless-retry-count", b"0"),
    (b"x-stainless-read-timeout", b"600"),
    (b"content-length", b"80"),
]
TRACED = [*HEADERS, (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
REQUEST = {"type": "http.request", "body": b'{"model":"gpt-4o-mini","messages":[]}', "more_body": False}
CHUNK = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"one "}}],"model":"gpt-4o-mini"}\n\n'

Application = Callable[[Any, Any, Any], Awaitable[None]]


class Nowhere(Destination):
    convention = Convention.MLFLOW

    def send(self, spans: Sequence[ReadableSpan], place: Place = None) -> None:
        """Accept the spans, and discard them."""


def run(report: Report) -> None:
    requests(report)


def requests(report: Report) -> None:
    """Requests with and without a traceparent, in this thread's processor time."""
    group = "one request of an ASGI gateway"
    exporter = Exporter(Nowhere())
    ours = GatewayTracingMiddleware(answer, exporter)
    samples = interleave(
        {
            "bare": _batch(answer, TRACED),
            FLOOR: _batch(inline_spans(answer), TRACED),
            "ours, traced": flushed(exporter, _batch(ours, TRACED)),
            "ours, not traced": _batch(ours, HEADERS),
        },
        seconds=6,
    )
    rows = report.added(group, samples, [name for name in samples if name != "bare"], FLOOR)
    report.mark("ASGI request, traced, in terms of two inline spans", rows["ours, traced"].ratio or 0, TRACED_SHARE)
    untraced = rows["ours, not traced"].ratio or 0
    report.mark("ASGI request, not traced, in terms of two inline spans", untraced, UNTRACED_SHARE)
    streams(report, rows[FLOOR].value)


def streams(report: Report, floor: float) -> None:
    """One more server-sent event; ``floor`` is the time of two inline spans, in microseconds."""
    exporter = Exporter(Nowhere())
    ours = GatewayTracingMiddleware(stream, exporter)
    few, many = partial(_batch, chunks=0, calls=20), partial(_batch, chunks=CHUNKS, calls=4)
    cases = {
        "bare, no chunk": few(stream, TRACED),
        "bare": many(stream, TRACED),
        "ours, no chunk": flushed(exporter, few(ours, TRACED)),
        "ours": flushed(exporter, many(ours, TRACED)),
    }
    samples = interleave(cases, seconds=4)

    def per_chunk(found: Any) -> float:
        return (added("ours", "ours, no chunk")(found) - added("bare", "bare, no chunk")(found)) / CHUNKS

    value, low, high = (1e6 * number for number in estimate(per_chunk, samples))
    interval = {"low": low, "high": high, "ratio": value / floor, "ratio_of": FLOOR}
    report.add("one chunk of a stream", "ours", value, "µs", **interval)
    report.mark("ASGI, one chunk of a stream, in terms of two inline spans", value / floor, CHUNK_SHARE)


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """The gateway: only an answer."""
    await receive()
    await send(START)
    await send(BODY)


async def stream(scope: Any, receive: Any, send: Any) -> None:
    """The gateway: the number of chunks in the scope."""
    await receive()
    await send(STREAM_START)
    await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    for _ in range(scope["chunks"]):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def inline_spans(app: Application) -> Application:
    """The floor: an operator's own OpenTelemetry code, with the two spans of a mirror and half of its facts."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(NowhereExporter(), max_queue_size=CALLS * 10))
    tracer = provider.get_tracer("benchmarks")

    async def traced(scope: Any, receive: Any, send: Any) -> None:
        parent = extract(scope["headers"], getter=_HeaderGetter())
        with tracer.start_as_current_span("gateway/chat", parent, attributes={"endpoint_name": "chat"}) as gateway:
            facts = {"mlflow.llm.provider": "openai", "mlflow.llm.model": "gpt-4o-mini"}
            with tracer.start_as_current_span("provider/openai/gpt-4o-mini", attributes=facts):
                await app(scope, receive, send)
            gateway.set_attribute("http.response.status_code", 200)

    return traced


class _HeaderGetter(Getter[Any]):
    def get(self, carrier: Any, key: str) -> list[str] | None:
        name = key.encode()
        return [value.decode() for header, value in carrier if header == name] or None

    def keys(self, carrier: Any) -> list[str]:
        return [name.decode() for name, _ in carrier]


def scope(headers: Any, chunks: int = 0) -> dict[str, Any]:
    path = "/v1/chat/completions"
    server = ("127.0.0.1", 5000)
    return {"type": "http", "method": "POST", "path": path, "headers": headers, "server": server, "chunks": chunks}


async def receive() -> Any:
    return REQUEST


async def send(message: Any) -> None:
    pass


def flushed(exporter: Exporter, timed: Callable[[], float]) -> Callable[[], float]:
    """Let the calls of earlier rounds be converted to spans before the clock runs: that is another thread's time."""

    def batch() -> float:
        exporter.flush()
        return timed()

    return batch


def _batch(app: Application, headers: Any, chunks: int = 0, calls: int = CALLS) -> Callable[[], float]:
    request = scope(headers, chunks)

    async def requests() -> float:
        begin = time.thread_time()
        for _ in range(calls):
            await app(request, receive, send)
        return (time.thread_time() - begin) / calls

    return lambda: asyncio.run(requests())


BODY = {"type": "http.response.body", "body": json.dumps(ANSWER).encode()}
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
STREAM_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
