"""Traces outside any store, for code that draws them."""

import json
from collections.abc import Sequence
from typing import Any

from mlflow.entities import Span, Trace, TraceData, TraceInfo, TraceLocation, TraceState
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from agent_gateway_client.traces.facts import facts_of
from agent_gateway_client.traces.read import JoinedTrace

MILLISECOND = 1_000_000


def span(number: int, parent: int | None, name: str, start: int, end: int | None, **attributes: Any) -> Span:
    """A span with times in milliseconds; one with an `error.type` has failed."""
    written = {"mlflow.traceRequestId": "tr-1", **{k.replace("__", "."): v for k, v in attributes.items()}}
    return Span(
        ReadableSpan(
            name=name,
            context=SpanContext(1, number, is_remote=False, trace_flags=TraceFlags(1)),
            parent=SpanContext(1, parent, is_remote=True) if parent else None,
            attributes={key: json.dumps(value) for key, value in written.items()},
            start_time=start * MILLISECOND,
            end_time=None if end is None else end * MILLISECOND,
            status=Status(StatusCode.ERROR if "error.type" in written else StatusCode.OK),
        )
    )


def joined(*spans: Span, linked: Sequence[Span] = (), trace_id: str = "tr-1") -> JoinedTrace:
    """A trace of these spans; `linked` are those of the gateway's own trace `tr-gw`."""
    info = TraceInfo(trace_id, TraceLocation.from_experiment_id("7"), 0, TraceState.OK)
    trace = Trace(info, TraceData(list(spans)))
    own = facts_of(Trace(info, TraceData(list(linked))))
    return JoinedTrace(trace, facts_of(trace), {"tr-gw": own} if own else {}, "http://mlflow")
