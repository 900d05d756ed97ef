"""What the middleware adds to a request of a WSGI gateway, compared with two OpenTelemetry spans made inline."""

import io
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from agent_gateway_client.server import GatewayTracingWSGIMiddleware
from agent_gateway_client.server.export import Exporter
from benchmarks.asgi import CALLS, FLOOR, HEADERS, REQUEST, TRACED, TRACED_SHARE, UNTRACED_SHARE, Nowhere, flushed
from benchmarks.measure import interleave
from benchmarks.report import Report
from benchmarks.samples import ANSWER
from benchmarks.samples import Nowhere as NowhereExporter

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]
BODY = json.dumps(ANSWER).encode()


def run(report: Report) -> None:
    exporter = Exporter(Nowhere())
    ours = GatewayTracingWSGIMiddleware(answer, exporter)
    samples = interleave(
        {
            "bare": _batch(answer, TRACED),
            FLOOR: _batch(inline_spans(answer), TRACED),
            "ours, traced": flushed(exporter, _batch(ours, TRACED)),
            "ours, not traced": _batch(ours, HEADERS),
        },
        seconds=6,
    )
    cases = [name for name in samples if name != "bare"]
    rows = report.added("one request of a WSGI gateway", samples, cases, FLOOR)
    report.mark("WSGI request, traced, in terms of two inline spans", rows["ours, traced"].ratio or 0, TRACED_SHARE)
    untraced = rows["ours, not traced"].ratio or 0
    report.mark("WSGI request, not traced, in terms of two inline spans", untraced, UNTRACED_SHARE)


def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The gateway: only an answer."""
    environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(BODY)))])
    return [BODY]


def inline_spans(app: Application) -> Application:
    """The floor: an operator's own OpenTelemetry code, with the two spans of a mirror and half of its facts."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(NowhereExporter(), max_queue_size=CALLS * 10))
    tracer = provider.get_tracer("benchmarks")

    def traced(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        parent = extract({"traceparent": environ["HTTP_TRACEPARENT"]})
        with tracer.start_as_current_span("gateway/chat", parent, attributes={"endpoint_name": "chat"}) as gateway:
            facts = {"mlflow.llm.provider": "openai", "mlflow.llm.model": "gpt-4o-mini"}
            with tracer.start_as_current_span("provider/openai/gpt-4o-mini", attributes=facts):
                body = app(environ, start_response)
            gateway.set_attribute("http.response.status_code", 200)
            return body

    return traced


def _batch(app: Application, headers: list[tuple[bytes, bytes]]) -> Callable[[], float]:
    body = REQUEST["body"]
    assert isinstance(body, bytes)
    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/v1/chat/completions",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "5000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        **{f"HTTP_{name.decode().upper().replace('-', '_')}": value.decode() for name, value in headers},
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
    }

    def batch() -> float:
        begin = time.thread_time()
        for _ in range(CALLS):
            chunks = app({**environ, "wsgi.input": io.BytesIO(body)}, _start_response)
            for _ in chunks:
                pass
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        return (time.thread_time() - begin) / CALLS

    return batch


def _start_response(status: str, headers: list[tuple[str, str]], error: Any = None) -> Callable[[bytes], object]:
    return lambda data: None
