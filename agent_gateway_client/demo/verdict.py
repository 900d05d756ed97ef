"""Was a call closed? What the gateway wrote into the agent's trace, held against what the agent sent."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Span, SpanStatusCode, Trace
from mlflow.exceptions import MlflowException
from mlflow.tracing.constant import SpanAttributeKey

from agent_gateway_client.demo.agents import SentCall
from agent_gateway_client.names import GATEWAY_SPAN_PREFIX, mlflow_trace_id
from agent_gateway_client.w3c import TraceContext, extract

DEADLINE_S = 60.0


class Traces:
    """Traces of one MLflow server, read again on demand.

    Args:
        client: The server's client.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._known: dict[str, Trace | None] = {}

    def get(self, trace_id: str) -> Trace | None:
        """Return a trace, or None while there is none."""
        if self._known.get(trace_id) is None:
            try:
                self._known[trace_id] = self._client.get_trace(trace_id, display=False)
            except MlflowException:
                self._known[trace_id] = None
        return self._known[trace_id]

    def forget(self) -> None:
        """Read all traces again next time."""
        self._known.clear()


def wait_for_verdicts(client: MlflowClient, calls: Sequence[SentCall]) -> list[dict[str, Any]]:
    """Judge every call as soon as all are closed, or as they are after a minute.

    Args:
        client: Client of the server that both the agent's and the gateway's traces are on.
        calls: What the agent sent.

    Returns:
        One object a call, by the contract of ``agent-gateway demo --json``.
    """
    deadline = time.monotonic() + DEADLINE_S
    traces = Traces(client)
    while True:
        verdicts = [judge(call, traces) for call in calls]
        if all(verdict["closed"] for verdict in verdicts) or time.monotonic() > deadline:
            return verdicts
        time.sleep(0.25)
        traces.forget()


def judge(call: SentCall, traces: Traces) -> dict[str, Any]:
    """Judge one call.

    Returns:
        The call as an object; ``closed`` says whether its mirror is what and where it has to be, and
        ``reason`` what is wrong where it is not.
    """
    verdict: dict[str, Any] = {
        "framework": "openai",
        "mode": call.mode,
        "instrumentation": call.instrumentation,
        "endpoint": call.endpoint,
        "trace_id": None,
        "closed": False,
        "reason": None,
        "parent_span": None,
        "mirror": None,
    }
    sent = [context for value in call.traceparents if (context := extract({"traceparent": value}))]
    if len(call.traceparents) != 1 or len(sent) != 1:
        count = len(call.traceparents)
        verdict["reason"] = f"the request carried {count} traceparent headers, {len(sent)} of them valid"
        return verdict
    verdict["trace_id"] = mlflow_trace_id(sent[0].trace_id)
    verdict["parent_span"] = f"{sent[0].span_id:016x}"
    trace = traces.get(verdict["trace_id"])
    if trace is None:
        verdict["reason"] = "the agent's trace is not on the server"
        return verdict
    verdict["mirror"], verdict["reason"] = _examine(call, sent[0], trace, traces)
    verdict["closed"] = verdict["reason"] is None
    return verdict


def _examine(
    call: SentCall, sent: TraceContext, trace: Trace, traces: Traces
) -> tuple[dict[str, Any] | None, str | None]:
    spans = trace.data.spans
    parent_id = f"{sent.span_id:016x}"
    mirrors = [s for s in spans if s.name.startswith(GATEWAY_SPAN_PREFIX)]
    own = [s for s in mirrors if s.parent_id == parent_id]
    if len(own) != 1:
        return None, f"{len(own)} mirrors below the span whose id was sent, {len(mirrors)} in the trace"
    children = sorted((s for s in spans if s.parent_id == own[0].span_id), key=lambda s: s.start_time_ns)
    mirror = _describe(own[0], children)
    client_span = next((s for s in spans if s.span_id == parent_id), None)
    return mirror, _fault(call, own[0], children, client_span, mirror, traces)


def _fault(
    call: SentCall,
    mirror: Span,
    attempts: Sequence[Span],
    client_span: Span | None,
    described: dict[str, Any],
    traces: Traces,
) -> str | None:
    if client_span is None:
        return "the client's span is not in the trace"
    if mirror.end_time_ns is None or not _within(mirror, client_span):
        return f"the mirror is not inside the client's span {client_span.name}: {_times(mirror, client_span)}"
    if outside := [s.name for s in attempts if not _within(s, mirror)]:
        return f"attempts are not inside the mirror: {', '.join(outside)}"
    statuses = tuple(attempt["status"] for attempt in described["attempts"])
    if statuses != call.attempts:
        return f"the attempts ended {list(statuses)}, not {list(call.attempts)}"
    if described["status"] != call.status:
        return f"the mirror's status is {described['status']}, not {call.status}"
    linked = described["linked_trace_id"]
    if not linked or traces.get(linked) is None:
        return f"the linked trace {linked} is not on the server"
    return None


def _within(inner: Span, outer: Span) -> bool:
    inner_end, outer_end = inner.end_time_ns, outer.end_time_ns
    if inner_end is None or outer_end is None:
        return False
    return bool(outer.start_time_ns <= inner.start_time_ns <= inner_end <= outer_end)


def _times(inner: Span, outer: Span) -> str:
    ends = (
        f"{(inner.end_time_ns - outer.end_time_ns) / 1e6:+.3f} ms"
        if inner.end_time_ns and outer.end_time_ns
        else "no end"
    )
    return f"start {(inner.start_time_ns - outer.start_time_ns) / 1e6:+.3f} ms, end {ends}"


def _describe(mirror: Span, attempts: Iterable[Span]) -> dict[str, Any]:
    return {
        "name": mirror.name,
        "span_id": mirror.span_id,
        "parent_id": mirror.parent_id,
        "start_time_ns": mirror.start_time_ns,
        "end_time_ns": mirror.end_time_ns,
        "status": _status(mirror),
        "linked_trace_id": mirror.get_attribute(SpanAttributeKey.LINKED_GATEWAY_TRACE_ID),
        "attempts": [
            {
                "name": attempt.name,
                "status": _status(attempt),
                "model": attempt.get_attribute(SpanAttributeKey.MODEL),
                "provider": attempt.get_attribute(SpanAttributeKey.MODEL_PROVIDER),
                "tokens": attempt.get_attribute(SpanAttributeKey.CHAT_USAGE),
            }
            for attempt in attempts
        ],
    }


def _status(span: Span) -> str:
    return {SpanStatusCode.OK: "OK", SpanStatusCode.ERROR: "ERROR"}.get(span.status.status_code, "UNSET")


def as_json(tracking_uri: str, experiment_id: str, verdicts: Sequence[dict[str, Any]]) -> str:
    """Encode the outcome of the demo, by the contract of ``agent-gateway demo --json``."""
    return json.dumps(
        {
            "tracking_uri": tracking_uri,
            "experiment_id": experiment_id,
            "closed": sum(verdict["closed"] for verdict in verdicts),
            "total": len(verdicts),
            "calls": list(verdicts),
        },
        indent=2,
    )
