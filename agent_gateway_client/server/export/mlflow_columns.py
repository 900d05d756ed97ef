"""Queries on the tables of MLflow's SQL store that read only the columns they need.

MLflow's public methods read tags, metadata, assessments and payload of each trace, which takes four to a hundred times
as long. The tables are private to MLflow: if a query fails, the caller falls back to the public methods.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from mlflow.store.tracking.dbmodels import models
from mlflow.tracing.constant import SpanAttributeKey
from mlflow.tracing.utils import (
    SpanAggregationNode,
    aggregate_cost_from_span_nodes,
    aggregate_usage_from_span_nodes,
)
from sqlalchemy import case, func

from agent_gateway_client.server.export.totals import COST, FINALIZED, MAX_READ_TOGETHER, USAGE, TraceTotals, exceeds

_REPORTED = {USAGE: SpanAttributeKey.CHAT_USAGE, COST: SpanAttributeKey.LLM_COST}
"""The span attribute that MLflow aggregates for each total."""

_AGGREGATE = {USAGE: aggregate_usage_from_span_nodes, COST: aggregate_cost_from_span_nodes}
_COLUMNS = {USAGE: "total_tokens", COST: "total_cost"}
"""Columns of the totals in newer versions of MLflow. 3.15 keeps them as metadata."""


def experiments_of(store: Any, trace_ids: Collection[str]) -> dict[str, str]:
    """Return the experiment ids of traces; unknown traces are left out."""
    table: Any = models.SqlTraceInfo
    with store.ManagedSessionMaker() as session:
        query = store._trace_query(session).with_entities(table.request_id, table.experiment_id)
        rows = _rows(session, query.filter(table.request_id.in_(trace_ids)))
        return {trace_id: str(experiment_id) for trace_id, experiment_id in rows}


def totals_of(store: Any, trace_ids: Collection[str], known: Mapping[str, TraceTotals]) -> dict[str, TraceTotals]:
    """Return the totals of the traces that their callers have ended; see ``Store.totals_of``."""
    with store.ManagedSessionMaker() as session:
        recorded = _recorded(store, session, trace_ids)
        counts = _counts(session, recorded.keys() & known.keys())
        found = {
            trace_id: known[trace_id]
            for trace_id, count in counts.items()
            if (known[trace_id].recorded, known[trace_id].spans) == (recorded[trace_id], count)
        }
        changed = list(recorded.keys() - found.keys())
        for start in range(0, len(changed), MAX_READ_TOGETHER):
            for trace_id, spans in _spans(session, changed[start : start + MAX_READ_TOGETHER]).items():
                found[trace_id] = TraceTotals(recorded[trace_id], _missing(spans, recorded[trace_id]), len(spans))
    return found


class _Span(NamedTuple):
    span_id: str
    parent_id: str | None
    reports: Mapping[str, dict[str, Any] | None]


def _missing(spans: Collection[_Span], recorded: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
    """Return MLflow's aggregates where they exceed the recorded totals."""
    missing: dict[str, Mapping[str, float]] = {}
    for name, column in _COLUMNS.items():
        # An aggregate is at most what all spans report, which takes less time to add up.
        most = sum([report.get(column) or 0 for span in spans if (report := span.reports.get(name))])
        if exceeds(most, recorded[name]):
            nodes = [SpanAggregationNode(span.span_id, span.parent_id, span.reports.get(name)) for span in spans]
            total = _AGGREGATE[name](nodes)
            if total and exceeds(total[column], recorded[name]):
                missing[name] = total
    return missing


def _rows(session: Any, query: Any) -> Any:
    """Run a query in the session's transaction without the ORM, which takes as long as the database."""
    return session.connection().execute(query.statement)


def _counts(session: Any, trace_ids: Collection[str]) -> dict[str, int]:
    """Return the number of stored spans of traces."""
    if not trace_ids:
        return {}
    table: Any = models.SqlSpan
    query = session.query(table.trace_id, func.count()).filter(table.trace_id.in_(list(trace_ids)))
    # An iterator: dict() takes a result, which has keys(), for a mapping.
    return dict(iter(_rows(session, query.group_by(table.trace_id))))


def _recorded(store: Any, session: Any, trace_ids: Collection[str]) -> dict[str, dict[str, float]]:
    """Return the recorded totals of the ended traces."""
    table: Any = models.SqlTraceInfo
    metadata: Any = models.SqlTraceMetadata
    names = [name for name, column in _COLUMNS.items() if hasattr(table, column)]
    columns = [getattr(table, _COLUMNS[name]) for name in names]
    ended = session.query(metadata.request_id).filter(
        metadata.request_id.in_(trace_ids), metadata.key == FINALIZED, metadata.value == "true"
    )
    query = store._trace_query(session).with_entities(table.request_id, *columns)
    nothing = dict.fromkeys(_COLUMNS, 0.0)
    found = {
        trace_id: {**nothing, **{name: value or 0.0 for name, value in zip(names, values, strict=True)}}
        for trace_id, *values in _rows(session, query.filter(table.request_id.in_(ended)))
    }
    if not columns:
        rows = session.query(metadata.request_id, metadata.key, metadata.value)
        wanted = rows.filter(metadata.request_id.in_(list(found)), metadata.key.in_(list(_COLUMNS)))
        for trace_id, key, value in _rows(session, wanted):
            found[trace_id][key] = json.loads(value).get(_COLUMNS[key], 0.0)
    return found


def _spans(session: Any, trace_ids: Collection[str]) -> Mapping[str, list[_Span]]:
    """Return the spans of traces, with what they report."""
    table: Any = models.SqlSpan
    # The content of other spans stays in the database: it can be large.
    content = case(
        *((table.content.contains(f'"{attribute}"'), table.content) for attribute in _REPORTED.values()), else_=None
    )
    query = session.query(table.trace_id, table.span_id, table.parent_span_id, content)
    found: defaultdict[str, list[_Span]] = defaultdict(list)
    for trace_id, span_id, parent_id, text in _rows(session, query.filter(table.trace_id.in_(list(trace_ids)))):
        reports = {name: _attribute(text, attribute) for name, attribute in _REPORTED.items()} if text else {}
        found[trace_id].append(_Span(span_id, parent_id, reports))
    return found


def _attribute(text: str, name: str) -> dict[str, Any] | None:
    """Return an attribute of a stored span, which may be large, without decoding the rest of it."""
    key = f'"{name}"'
    start = text.find(key)
    if start < 0:
        return None
    if text.startswith(": ", start + len(key)) and text.find(key, start + 1) < 0:
        value, _ = _decode(text, start + len(key) + 2)
    else:
        # In an event or a link as well.
        value = (json.loads(text).get("attributes") or {}).get(name)
    # MLflow stores an attribute's value as JSON.
    value = json.loads(value) if isinstance(value, str) else value
    return value if isinstance(value, dict) else None


_decode = json.JSONDecoder().raw_decode
