"""Decides whether a call is closed: compares the gateway's spans in the agent's trace with what the agent sent."""

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
from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.traces.joined import children_of, fault_of, mirrors_in
from agent_gateway_client.w3c import TraceContext, extract

DEADLINE_S = 60.0


class Traces:
    """A cache of the traces of one MLflow server.

    Args:
        client: The server's client.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._known: dict[str, Trace | None] = {}

    def get(self, trace_id: str) -> Trace | None:
        """Return a trace; None if the server does not have it."""
        if self._known.get(trace_id) is None:
            try:
                self._known[trace_id] = self._client.get_trace(trace_id, display=False)
            except MlflowException:
                self._known[trace_id] = None
        return self._known[trace_id]

    def forget(self) -> None:
        """Clear the cache."""
        self._known.clear()


def wait_for_verdicts(client: MlflowClient, calls: Sequence[SentCall]) -> list[dict[str, Any]]:
    """Judge the calls when all are closed, or after a minute.

    Args:
        client: Client of the server that both the agent's and the gateway's traces are on.
        calls: What the agent sent.

    Returns:
        One object per call, as ``agent-gateway demo --json`` prints it.
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
        The call as an object. ``closed`` is true if the mirror is in the right place with the expected facts;
        otherwise ``reason`` says what is wrong.
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
    mirrors = mirrors_in(spans)
    own = [mirror for mirror in mirrors if mirror.parent_id == parent_id]
    if len(own) != 1:
        return None, f"{len(own)} mirrors below the span whose id was sent, {len(mirrors)} in the trace"
    described = _describe(own[0], children_of(spans, own[0]))
    return described, fault_of(spans, own[0], parent_id) or _unexpected(call, described, traces)


def _unexpected(call: SentCall, mirror: dict[str, Any], traces: Traces) -> str | None:
    """Return what differs from the expected outcome of a call."""
    statuses = tuple(attempt["status"] for attempt in mirror["attempts"])
    if statuses != call.attempts:
        return f"the attempts ended {list(statuses)}, not {list(call.attempts)}"
    if mirror["status"] != call.status:
        return f"the mirror's status is {mirror['status']}, not {call.status}"
    linked = mirror["linked_trace_id"]
    if not linked or traces.get(linked) is None:
        return f"the linked trace {linked} is not on the server"
    return None


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
    """Encode the result as the object that ``agent-gateway demo --json`` prints."""
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
