"""The model calls of many joined traces as a pandas frame."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlflow.entities import Trace
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import TokenUsageKey

from agent_gateway_client.errors import MissingDependencyError
from agent_gateway_client.traces.facts import SpanFacts, facts_of
from agent_gateway_client.traces.read import client_for, experiment_ids, is_gateways_own, unreadable

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, import-not-found, unused-ignore]

COLUMNS = {
    "trace_id": "str",
    "agent_span": "str",
    "agent_span_ms": "float64",
    "endpoint": "str",
    "attempt": "Int64",
    "provider": "str",
    "model": "str",
    "status": "str",
    "error": "str",
    "input_tokens": "Int64",
    "cached_tokens": "Int64",
    "output_tokens": "Int64",
    "cost": "float64",
    "start": "datetime64[ns, UTC]",
    "attempt_ms": "float64",
    "call_ms": "float64",
}
"""The columns of the frame and their pandas types."""

_PAGE = 100
_RECENT_S = 10.0
_QUIET_S = 1.0
_PATIENCE_S = 20.0
_POLL_S = 0.2


def joined_calls(experiment: str, *, tracking_uri: str | None = None, max_traces: int = 1000) -> pd.DataFrame:
    """Return the mirrored calls in the newest traces of an experiment, with one row per provider attempt.

    Sends this process's queued spans first. Mirrors arrive shortly after a trace has ended, so for recent traces this
    waits until nothing new has arrived for a second. A call without a provider attempt has one row.

    Unknown values are missing, not 0: a price that MLflow does not know is ``NaN``. Sum with ``min_count=1``, so that
    the sum of only unknown prices is unknown too.

    Args:
        experiment: Name or id of the MLflow experiment with the agents' traces.
        tracking_uri: The MLflow server or store; by default the one that MLflow is configured to use.
        max_traces: Maximum number of traces to read.

    Returns:
        A frame in the order of the calls, with the columns:

        - ``trace_id``;
        - ``agent_span``, ``agent_span_ms``: the agent's span around the call, not that of autologging;
        - ``endpoint``, ``call_ms``: the gateway's endpoint, and the duration of the call there;
        - ``attempt`` (1 is the first), ``provider``, ``model``, ``start`` (UTC), ``attempt_ms``;
        - ``status``, ``error``: of the attempt, or of a call without attempts;
        - ``input_tokens``, of which ``cached_tokens`` came from the provider's cache, ``output_tokens``;
        - ``cost`` in USD.

    Raises:
        MissingDependencyError: pandas is not installed.
        NotFoundError: The experiment does not exist, or MLflow does not answer.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        raise MissingDependencyError("joined_calls() needs the package pandas: pip install pandas") from None
    import mlflow

    mlflow.flush_trace_async_logging()
    client = client_for(tracking_uri)
    traces = _read_settled(client, experiment_ids(client, experiment), max_traces)
    rows = sorted((row for trace in traces for row in rows_of(facts_of(trace), str(trace.info.trace_id))), key=_start)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def rows_of(spans: Sequence[SpanFacts], trace_id: str) -> Iterator[dict[str, Any]]:
    """Yield one row per provider attempt of a trace, or per gateway call without attempts."""
    known = {span.span_id: span for span in spans}
    attempts: dict[str | None, list[SpanFacts]] = {}
    for span in spans:
        if span.kind == "attempt":
            attempts.setdefault(span.parent_id, []).append(span)
    for call in spans:
        if call.kind == "gateway":
            caller = _agent_span(call, known)
            of_call = {
                "trace_id": trace_id,
                "agent_span": caller.name if caller else None,
                "agent_span_ms": _milliseconds(caller) if caller else None,
                "endpoint": call.attributes.get("endpoint_name") or call.name.removeprefix("gateway/"),
                "call_ms": _milliseconds(call),
            }
            tried = attempts.get(call.span_id, [])
            for number, attempt in enumerate(tried, start=1):
                yield {**of_call, "attempt": number, **_outcome(attempt)}
            if not tried:
                yield {**of_call, "attempt": None, **_outcome(call), "attempt_ms": None}


def _outcome(span: SpanFacts) -> dict[str, Any]:
    usage = span.usage or {}
    return {
        "provider": span.attributes.get("mlflow.llm.provider"),
        "model": span.model,
        "status": span.status,
        "error": span.error_type,
        "input_tokens": usage.get(TokenUsageKey.INPUT_TOKENS),
        # Mirrors leave out a zero count of cached tokens.
        "cached_tokens": usage.get(TokenUsageKey.CACHE_READ_INPUT_TOKENS, 0) if usage else None,
        "output_tokens": usage.get(TokenUsageKey.OUTPUT_TOKENS),
        "cost": span.cost,
        "start": span.start_ns,
        "attempt_ms": _milliseconds(span),
    }


def _agent_span(call: SpanFacts, known: dict[str, SpanFacts]) -> SpanFacts | None:
    """Return the agent's span around a call, skipping autologging's span of the call itself."""
    nearest = span = known.get(call.parent_id or "")
    while span is not None and (span.kind != "own" or span.is_model_call):
        span = known.get(span.parent_id or "") if span.depth else None
    return span or nearest


def _milliseconds(span: SpanFacts) -> float | None:
    return None if span.end_ns is None else (span.end_ns - span.start_ns) / 1e6


def _start(row: dict[str, Any]) -> int:
    start: int = row["start"]
    return start


def _read_settled(client: TracingClient, locations: list[str], max_traces: int) -> list[Trace]:
    deadline = time.monotonic() + _PATIENCE_S
    traces = _read(client, locations, max_traces)
    changed = time.monotonic()
    while _are_recent(traces) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        began = time.monotonic()
        again = _read(client, locations, max_traces)
        now = time.monotonic()
        if _sizes(again) != _sizes(traces):
            traces, changed = again, now
        # A server that is slow to read from is also slow to write.
        elif now - changed > _QUIET_S + 5 * (now - began):
            break
    return traces


def _read(client: TracingClient, locations: list[str], max_traces: int) -> list[Trace]:
    found: list[Trace] = []
    token = None
    try:
        while len(found) < max_traces:
            page = client.search_traces(
                locations=locations,
                max_results=min(_PAGE, max_traces - len(found)),
                order_by=["timestamp_ms DESC"],
                page_token=token,
            )
            found += [trace for trace in page if not is_gateways_own(trace)]
            token = page.token
            if not token:
                break
    except MlflowException as error:
        raise unreadable(client, error) from error
    return found


def _sizes(traces: Iterable[Trace]) -> dict[str, int]:
    return {trace.info.trace_id: len(trace.data.spans) for trace in traces}


def _are_recent(traces: Sequence[Trace]) -> bool:
    last_ns = max((span.end_time_ns or span.start_time_ns for trace in traces for span in trace.data.spans), default=0)
    return time.time_ns() - last_ns < _RECENT_S * 1e9
