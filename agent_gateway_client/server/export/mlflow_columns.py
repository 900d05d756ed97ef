"""Queries on the tables of MLflow's SQL store that read only the columns they need.

MLflow's public methods read tags, metadata, assessments and payload of each trace, which takes four to a hundred times
as long. The tables are private to MLflow: if a query fails, the caller falls back to the public methods.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mlflow.store.tracking.dbmodels import models
from mlflow.tracing.constant import SpanAttributeKey
from mlflow.tracing.utils import (
    SpanAggregationNode,
    aggregate_cost_from_span_nodes,
    aggregate_usage_from_span_nodes,
)
from sqlalchemy import case, func, or_

from agent_gateway_client.server.export.totals import (
    COST,
    FINALIZED,
    MAX_READ_TOGETHER,
    USAGE,
    TraceTotals,
    exceeds,
    no_totals,
)

_REPORTED = {USAGE: SpanAttributeKey.CHAT_USAGE, COST: SpanAttributeKey.LLM_COST}
"""The span attribute that MLflow aggregates for each total."""

_AGGREGATE = {USAGE: aggregate_usage_from_span_nodes, COST: aggregate_cost_from_span_nodes}
_COLUMNS = {USAGE: "total_tokens", COST: "total_cost"}
"""Columns of the totals in newer versions of MLflow. 3.15 keeps them as metadata."""

_USUAL_FORM = {
    name: (f'"{_REPORTED[name]}": "{{', re.compile(rf'\\"{column}\\": ?(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)[,}}]'))
    for name, column in _COLUMNS.items()
}
"""How MLflow stores a report, which is JSON in a string of JSON: its key, and the pattern of its total."""


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
        recorded, counts = _recorded(store, session, trace_ids)
        found = {
            trace_id: totals
            for trace_id, totals in known.items()
            if (totals.recorded, totals.spans) == (recorded.get(trace_id), counts.get(trace_id))
        }
        changed = list(recorded.keys() - found.keys())
        for start in range(0, len(changed), MAX_READ_TOGETHER):
            together = changed[start : start + MAX_READ_TOGETHER]
            most = _most(session, together)
            exceeding = [trace_id for trace_id in together if _exceeding(most[trace_id], recorded[trace_id])]
            spans = _spans(session, exceeding)
            for trace_id in together:
                try:
                    missing = _missing(spans[trace_id], recorded[trace_id]) if trace_id in spans else {}
                    found[trace_id] = TraceTotals(recorded[trace_id], missing, counts[trace_id])
                except Exception as error:
                    found[trace_id] = no_totals(counts[trace_id], error)
    return found


def _exceeding(totals: Mapping[str, float], recorded: Mapping[str, float]) -> list[str]:
    """Return the names of the totals that exceed the recorded ones."""
    return [name for name in _COLUMNS if exceeds(totals[name], recorded[name])]


def _missing(spans: Sequence["_Span"], recorded: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
    """Return MLflow's aggregates where they exceed the recorded totals."""
    nodes = {
        name: [SpanAggregationNode(span.span_id, span.parent_id, span.reports.get(name)) for span in spans]
        for name in _COLUMNS
    }
    totals = {name: _AGGREGATE[name](nodes[name]) or {} for name in _COLUMNS}
    names = _exceeding({name: totals[name].get(column, 0.0) for name, column in _COLUMNS.items()}, recorded)
    return {name: totals[name] for name in names}


def _rows(session: Any, query: Any) -> Any:
    """Run a query in the session's transaction without the ORM, which takes as long as the database."""
    # All at once: fetching one by one takes longer.
    return session.connection().execute(query.statement).all()


def _recorded(
    store: Any, session: Any, trace_ids: Collection[str]
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Return the recorded totals of the ended traces, and the numbers of their stored spans."""
    table: Any = models.SqlTraceInfo
    metadata: Any = models.SqlTraceMetadata
    names = [name for name, column in _COLUMNS.items() if hasattr(table, column)]
    columns = [getattr(table, _COLUMNS[name]) for name in names]
    ended = session.query(metadata.request_id).filter(
        metadata.request_id.in_(trace_ids), metadata.key == FINALIZED, metadata.value == "true"
    )
    spans: Any = models.SqlSpan
    count = session.query(func.count()).filter(spans.trace_id == table.request_id).scalar_subquery()
    query = store._trace_query(session).with_entities(table.request_id, count, *columns)
    nothing = dict.fromkeys(_COLUMNS, 0.0)
    found: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for trace_id, counted, *values in _rows(session, query.filter(table.request_id.in_(ended))):
        counts[trace_id] = counted
        found[trace_id] = nothing | {name: value or 0.0 for name, value in zip(names, values, strict=True)}
    if not columns:
        rows = session.query(metadata.request_id, metadata.key, metadata.value)
        wanted = rows.filter(metadata.request_id.in_(list(found)), metadata.key.in_(list(_COLUMNS)))
        for trace_id, key, value in _rows(session, wanted):
            found[trace_id][key] = _total_in(_decoded(value), key)
    return found, counts


def _most(session: Any, trace_ids: Collection[str]) -> Mapping[str, dict[str, float]]:
    """Return what all spans of traces report, added up. MLflow's aggregates are at most that, and take longer."""
    table: Any = models.SqlSpan
    found: defaultdict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_COLUMNS, 0.0))
    query = session.query(table.trace_id, table.content).filter(table.trace_id.in_(list(trace_ids)), _reports())
    for trace_id, text in _rows(session, query):
        total = found[trace_id]
        for name in _COLUMNS:
            total[name] += _reported(text, name)
    return found


class _Span(NamedTuple):
    span_id: str
    parent_id: str | None
    reports: Mapping[str, dict[str, Any] | None]


def _spans(session: Any, trace_ids: Collection[str]) -> Mapping[str, list[_Span]]:
    """Return the spans of traces, with what they report."""
    if not trace_ids:
        return {}
    table: Any = models.SqlSpan
    content = case((_reports(), table.content), else_=None)
    query = session.query(table.trace_id, table.span_id, table.parent_span_id, content)
    found: defaultdict[str, list[_Span]] = defaultdict(list)
    for trace_id, span_id, parent_id, text in _rows(session, query.filter(table.trace_id.in_(list(trace_ids)))):
        found[trace_id].append(_Span(span_id, parent_id, _reports_in(text) if text else {}))
    return found


def _reports() -> Any:
    """Return the condition for spans that report. The content of others stays in the database: it can be large."""
    content: Any = models.SqlSpan.content
    return or_(*(content.contains(f'"{attribute}"') for attribute in _REPORTED.values()))


def _reported(text: str, name: str) -> float:
    """Return the total that a stored span reports."""
    key, escaped_total = _USUAL_FORM[name]
    start = text.find(key)
    if start >= 0 and text.find(key, start + 1) < 0:
        # In half the time of a decoder, if the report has no objects in it.
        end = text.find("}", start)
        if text.startswith('}"', end) and (total := escaped_total.search(text, start, end + 1)):
            return float(total[1])
    return _total_in(_attribute(text, _REPORTED[name]), name)


def _reports_in(text: str) -> dict[str, dict[str, Any] | None]:
    return {name: _attribute(text, attribute) for name, attribute in _REPORTED.items()}


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
    if isinstance(value, str):
        value = _decoded(value)
    return value if isinstance(value, dict) else None


def _total_in(report: Any, name: str) -> float:
    total = report.get(_COLUMNS[name]) if isinstance(report, dict) else None
    return total if isinstance(total, int | float) else 0.0


def _decoded(text: str) -> Any:
    try:
        value, _ = _decode(text)
    except ValueError:
        return None
    return value


_decode = json.JSONDecoder().raw_decode
