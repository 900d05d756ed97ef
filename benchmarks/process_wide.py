"""What ``instrument()`` adds to a request of urllib3 and of requests, over connections without a network."""

import io
import json
from collections.abc import Callable
from typing import Any

import mlflow
import requests
import urllib3
from urllib3.connection import HTTPConnection

from agent_gateway_client import instrument
from benchmarks.client import ELSEWHERE, GATEWAY_SHARE, OTHER, OTHER_SHARE, OURS
from benchmarks.frameworks import settled
from benchmarks.measure import interleave
from benchmarks.report import Report
from benchmarks.samples import ANSWER, GATEWAY, MESSAGES
from benchmarks.tracing import active_span

URL = f"{GATEWAY}/openai/v1/chat/completions"
HEADERS = {"content-type": "application/json", "authorization": "Bearer none"}
BODY = json.dumps({"model": "gpt-4o-mini", "messages": MESSAGES}).encode()
CONTENT = json.dumps(ANSWER).encode()
SECONDS = 8

Call = Callable[[dict[str, str]], Any]


class _Connection(HTTPConnection):
    """Answers every request with the same completion. All but the socket is urllib3's own."""

    def connect(self) -> None:
        """Open no socket."""

    def send(self, data: Any) -> None:
        """Send nothing."""

    def getresponse(self) -> Any:
        self.close()
        headers = {"content-type": "application/json", "content-length": str(len(CONTENT))}
        return urllib3.HTTPResponse(io.BytesIO(CONTENT), headers, 200, preload_content=False, request_method="POST")


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection  # type: ignore[assignment]


def run(report: Report) -> None:
    with active_span():
        for name, call in (("urllib3", _of_urllib3()), ("requests", _of_requests())):
            samples = interleave(
                {
                    "bare": settled(lambda call=call: call(HEADERS)),  # type: ignore[misc]
                    "floor": settled(lambda call=call: call(_with_header())),  # type: ignore[misc]
                    OURS: _instrumented(call, GATEWAY),
                    ELSEWHERE: _instrumented(call, OTHER),
                },
                SECONDS,
            )
            group = f"one request, {name}"
            rows = report.added(group, samples, [case for case in samples if case != "bare"])
            report.mark(f"Client, {group} to a gateway, in terms of the floor", rows[OURS].ratio or 0, GATEWAY_SHARE)
            elsewhere = rows[ELSEWHERE].ratio or 0
            report.mark(f"Client, {group} to another host, in terms of the floor", elsewhere, OTHER_SHARE)


def _with_header() -> dict[str, str]:
    """The floor: what a user writes without a package, for every request to any host."""
    span = mlflow.get_current_active_span()
    assert span is not None
    context = span._span.get_span_context()
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return {**HEADERS, "traceparent": traceparent}


def _instrumented(call: Call, gateway: str) -> Callable[[], float]:
    def timed() -> float:
        with instrument(gateway):
            return settled(lambda: call(HEADERS))()

    return timed


def _of_urllib3() -> Call:
    pool = _Pool("gateway.test", 5000)
    path = URL.partition(":5000")[2]
    return lambda headers: pool.urlopen("POST", path, body=BODY, headers=headers)


def _of_requests() -> Call:
    session = requests.Session()
    session.trust_env = False
    adapter = requests.adapters.HTTPAdapter()
    adapter.poolmanager.pool_classes_by_scheme = {"http": _Pool}
    session.mount("http://", adapter)
    prepared = session.prepare_request(requests.Request("POST", URL, data=BODY))

    def call(headers: dict[str, str]) -> Any:
        # To prepare a request takes as long as all of this, and needs nothing of ours.
        prepared.headers = requests.structures.CaseInsensitiveDict(headers)
        return session.send(prepared)

    return call
