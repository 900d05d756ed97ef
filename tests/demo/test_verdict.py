"""verdict.py: what makes a call closed, and each single thing that keeps it from being closed."""

import json
from dataclasses import replace
from typing import Any

import pytest
from mlflow.entities import Span, Trace, TraceData, TraceInfo, TraceLocation, TraceState
from mlflow.exceptions import MlflowException
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from agent_gateway_client.demo.agents import SentCall
from agent_gateway_client.demo.verdict import Traces, judge

TRACE = 0x1234
TRACE_ID = f"tr-{TRACE:032x}"
CLIENT, MIRROR, ATTEMPT, SECOND = 1, 2, 3, 4
SENT = f"00-{TRACE:032x}-{CLIENT:016x}-01"
CALL = SentCall("stream", "chat", "start_span", (SENT,))
OK, ERROR = StatusCode.OK, StatusCode.ERROR


def span(
    number: int,
    parent: int | None,
    name: str,
    times: tuple[int, int | None],
    status: StatusCode = OK,
    **attributes: Any,
) -> Span:
    def context(span_id: int) -> SpanContext:
        return SpanContext(TRACE, span_id, is_remote=False, trace_flags=TraceFlags(1))

    written = {"mlflow.traceRequestId": TRACE_ID, **{k.replace("__", "."): v for k, v in attributes.items()}}
    return Span(
        ReadableSpan(
            name=name,
            context=context(number),
            parent=context(parent) if parent else None,
            attributes={key: json.dumps(value) for key, value in written.items()},
            start_time=times[0],
            end_time=times[1],
            status=Status(status),
        )
    )


def client_span(times: tuple[int, int] = (100, 900)) -> Span:
    return span(CLIENT, None, "ask", times)


def mirror_span(
    times: tuple[int, int | None] = (200, 800),
    status: StatusCode = OK,
    parent: int = CLIENT,
    linked: str | None = "tr-gw",
) -> Span:
    return span(MIRROR, parent, "gateway/chat", times, status, mlflow__gateway__linkedTraceId=linked)


def attempt_span(
    times: tuple[int, int] = (300, 700), status: StatusCode = OK, number: int = ATTEMPT, parent: int = MIRROR
) -> Span:
    return span(
        number, parent, "provider/openai/m", times, status, mlflow__llm__model="m", mlflow__llm__provider="openai"
    )


class Server:
    """The one method of MLflow's client that is used."""

    def __init__(self, *spans: Span, others: tuple[str, ...] = ("tr-gw",)) -> None:
        self.spans = list(spans)
        self.others = others

    def get_trace(self, trace_id: str, display: bool) -> Trace:
        if trace_id != TRACE_ID and trace_id not in self.others:
            raise MlflowException("no such trace")
        info = TraceInfo(trace_id, TraceLocation.from_experiment_id("0"), 0, TraceState.OK)
        return Trace(info, TraceData(self.spans if trace_id == TRACE_ID else []))


def verdict(server: Server, call: SentCall = CALL) -> dict[str, Any]:
    return judge(call, Traces(server))  # type: ignore[arg-type]


def test_a_closed_call():
    assert verdict(Server(client_span(), mirror_span(), attempt_span())) == {
        "framework": "openai",
        "mode": "stream",
        "instrumentation": "start_span",
        "endpoint": "chat",
        "trace_id": TRACE_ID,
        "closed": True,
        "reason": None,
        "parent_span": f"{CLIENT:016x}",
        "mirror": {
            "name": "gateway/chat",
            "span_id": f"{MIRROR:016x}",
            "parent_id": f"{CLIENT:016x}",
            "start_time_ns": 200,
            "end_time_ns": 800,
            "status": "OK",
            "linked_trace_id": "tr-gw",
            "attempts": [
                {"name": "provider/openai/m", "status": "OK", "model": "m", "provider": "openai", "tokens": None}
            ],
        },
    }


def test_a_fallback_and_a_failure_are_closed_when_they_are_told_as_they_were():
    """Attempts are put in the order of their start, whatever order they are stored in."""
    fallback = replace(CALL, attempts=("ERROR", "OK"))
    second = attempt_span((500, 600), number=SECOND)
    first = attempt_span((300, 400), ERROR)
    assert verdict(Server(client_span(), mirror_span(), second, first), fallback)["closed"]
    failure = replace(CALL, attempts=("ERROR",))
    assert verdict(Server(client_span(), mirror_span(status=ERROR), attempt_span(status=ERROR)), failure)["closed"]


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (Server(client_span()), "0 mirrors below"),
        (Server(client_span(), mirror_span(parent=9)), "0 mirrors below the span whose id was sent, 1 in the trace"),
        (Server(client_span(), mirror_span(), mirror_span()), "2 mirrors below"),
        (Server(mirror_span(), attempt_span()), "client's span is not in the trace"),
        (Server(client_span(), mirror_span((99, 800)), attempt_span()), "not inside the client's span"),
        (Server(client_span(), mirror_span((200, 901)), attempt_span()), "not inside the client's span"),
        (Server(client_span(), mirror_span((200, None)), attempt_span()), "not inside the client's span"),
        (Server(client_span(), mirror_span(), attempt_span((199, 700))), "attempts are not inside the mirror"),
        (Server(client_span(), mirror_span(), attempt_span((300, 801))), "attempts are not inside the mirror"),
        (Server(client_span(), mirror_span()), "attempts ended"),
        (Server(client_span(), mirror_span(), attempt_span(parent=CLIENT)), "attempts ended"),
        (Server(client_span(), mirror_span(), attempt_span(status=ERROR)), "attempts ended"),
        (Server(client_span(), mirror_span(), attempt_span(), attempt_span(number=SECOND)), "attempts ended"),
        (Server(client_span(), mirror_span(status=ERROR), attempt_span()), "status is ERROR, not OK"),
        (Server(client_span(), mirror_span(status=StatusCode.UNSET), attempt_span()), "status is UNSET, not OK"),
        (Server(client_span(), mirror_span(linked=None), attempt_span()), "linked trace None"),
        (Server(client_span(), mirror_span(), attempt_span(), others=()), "linked trace tr-gw is not on the server"),
    ],
)
def test_a_call_is_not_closed(server: Server, reason: str):
    found = verdict(server)
    assert found["closed"] is False
    assert reason in found["reason"]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ((), "0 traceparent headers"),
        ((SENT, SENT), "2 traceparent headers"),
        (("nonsense",), "1 traceparent headers, 0 of them valid"),
        ((SENT.replace("1234", "9999"),), "trace is not on the server"),
    ],
)
def test_without_one_valid_header_and_its_trace_nothing_is_closed(sent: tuple[str, ...], reason: str):
    found = verdict(Server(client_span(), mirror_span(), attempt_span()), replace(CALL, traceparents=sent))
    assert found["closed"] is False
    assert reason in found["reason"]
    assert found["mirror"] is None
