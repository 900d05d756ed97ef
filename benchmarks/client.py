"""The additional cost of a request: httpx and OpenAI's SDK over a transport without a network."""

import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import httpx
import mlflow
import openai
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from agent_gateway_client import wrap_httpx
from agent_gateway_client.http._clients import hook_of
from benchmarks.measure import Samples, added, estimate, interleave, loop, median, ratio
from benchmarks.report import Report
from benchmarks.samples import BASE_URL, MESSAGES, Nowhere
from benchmarks.tracing import active_span, answering_transport, as_if_alone, floor_hook, http_client

OTHER = "http://other.test:5000"
OURS = "ours"
ELSEWHERE = "ours, to another host"
BESIDE_OTEL = "ours, beside OpenTelemetry's instrumentation"
OTEL = "OpenTelemetry httpx instrumentation"
EXTRA_HEADERS = "MLflow's extra_headers"
GATEWAY_SHARE = 0.5
OTHER_SHARE = 0.15
OTEL_SHARE = 1 / 15


def run(report: Report) -> None:
    with active_span():
        requests_in_a_loop(report)
        hooks(report)
        httpx_calls(report)
        openai_calls(report)


def requests_in_a_loop(report: Report) -> None:
    """Operations on one request, repeated with warm caches, as in micro-benchmarks."""
    instrumented = instrumented_client()
    bare, ours, elsewhere = answering_transport(), _hook(), _hook([OTHER])
    request = http_client().build_request(
        "POST", "/chat/completions", json={"model": "gpt-4o-mini", "messages": MESSAGES}
    )
    headers = request.headers.raw

    def send(hook: Callable[[Any], Any] | None, transport: httpx.BaseTransport) -> None:
        request.headers, request.extensions = httpx.Headers(headers), {}
        # So does httpx when it makes a request. The first access to headers reads them all, later ones do not.
        assert "host" in request.headers
        if hook is not None:
            hook(request)
        transport.handle_request(request)

    samples = interleave(
        {
            "bare": loop(partial(send, None, bare), 200),
            "floor": loop(partial(send, floor_hook, bare), 200),
            OURS: as_if_alone(loop(partial(send, ours, bare), 200)),
            ELSEWHERE: as_if_alone(loop(partial(send, elsewhere, bare), 200)),
            OTEL: loop(partial(send, None, instrumented._transport), 200),
        },
        seconds=4,
    )
    rows = report.added("one request in a loop", samples, [name for name in samples if name != "bare"])
    report.mark("Client, request to a gateway in a loop, in terms of the floor", rows[OURS].ratio or 0, GATEWAY_SHARE)
    report.mark(
        "Client, request to another host in a loop, in terms of the floor", rows[ELSEWHERE].ratio or 0, OTHER_SHARE
    )
    _mark_against_otel(report, "in a loop", samples)


def _hook(gateways: list[str] | None = None) -> Any:
    return hook_of(wrap_httpx(http_client(), gateways))


def hooks(report: Report) -> None:
    """The hook alone, timed inside real calls of OpenAI's SDK, with the call's own caches."""
    samples = interleave(
        {
            "bare": _timed_hook(lambda request: None),
            "floor": _timed_hook(floor_hook),
            OURS: _timed_hook(_hook()),
            ELSEWHERE: _timed_hook(_hook([OTHER])),
        },
        seconds=4,
    )
    rows = report.added("hook in one call", samples, [name for name in samples if name != "bare"])
    report.mark("Client, request to a gateway in a call, in terms of the floor", rows[OURS].ratio or 0, GATEWAY_SHARE)
    report.mark(
        "Client, request to another host in a call, in terms of the floor", rows[ELSEWHERE].ratio or 0, OTHER_SHARE
    )


def _timed_hook(hook: Callable[[Any], Any]) -> Callable[[], float]:
    taken = 0.0

    def timed(request: Any) -> None:
        nonlocal taken
        begin = time.perf_counter()
        hook(request)
        taken = time.perf_counter() - begin

    def batch() -> float:
        sdk.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        return taken

    sdk = openai.OpenAI(base_url=BASE_URL, api_key="none", http_client=http_client(timed))
    return batch


def httpx_calls(report: Report) -> None:
    """Whole requests of httpx, which do little else, so that the added costs show."""
    _calls(report, "one request, httpx", lambda client, headers: client.post("/chat/completions", headers=headers))


def openai_calls(report: Report) -> None:
    """Whole calls of OpenAI's SDK."""

    def call(client: httpx.Client, headers: dict[str, str] | None) -> Any:
        return sdk(client).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, extra_headers=headers)

    sdk = cache(lambda client: openai.OpenAI(base_url=BASE_URL, api_key="none", http_client=client))
    _calls(report, "one call, OpenAI's SDK", call)


def _calls(report: Report, group: str, call: Callable[[httpx.Client, dict[str, str] | None], Any]) -> None:
    cases = {name: loop(partial(call, client, None), 20) for name, client in _clients()}
    for name in (OURS, ELSEWHERE):
        cases[name] = as_if_alone(cases[name])
    bare = http_client()
    get_headers = mlflow.tracing.get_tracing_context_headers_for_http_request
    cases[EXTRA_HEADERS] = loop(lambda: call(bare, get_headers()), 20)
    samples = interleave(cases, seconds=4)
    report.added(group, samples, [name for name in samples if name != "bare"])
    if "httpx" in group:
        _mark_against_otel(report, "as a whole", samples)
    whole, low, high = estimate(median("bare"), samples)
    report.add(group, "(all of it without anything)", 1e6 * whole, "µs", low=1e6 * low, high=1e6 * high)


def _mark_against_otel(report: Report, how: str, samples: Samples) -> None:
    share, _, _ = estimate(ratio(added(OURS), added(OTEL)), samples)
    report.mark(
        f"Client, request to a gateway {how}, in terms of OpenTelemetry's httpx instrumentation", share, OTEL_SHARE
    )


def _clients() -> Iterator[tuple[str, httpx.Client]]:
    yield "bare", http_client()
    yield "floor", http_client(floor_hook)
    yield OURS, wrap_httpx(http_client())
    yield ELSEWHERE, wrap_httpx(http_client(), [OTHER])
    yield OTEL, instrumented_client()
    # Another client than the one above, whose send method is replaced only beside the instrumentation.
    yield BESIDE_OTEL, wrap_httpx(http_client())


def instrumented_client() -> httpx.Client:
    """A client with OpenTelemetry's instrumentation, whose spans are discarded."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    client = http_client()
    HTTPXClientInstrumentor.instrument_client(client, tracer_provider=provider)
    return client
