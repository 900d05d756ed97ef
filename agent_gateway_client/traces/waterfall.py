"""A joined trace as a waterfall in HTML: one self-contained element without scripts or external resources.

A trace is untrusted: all its texts are escaped, and none becomes a class, a style or a URL. On a page that removes
styles, as code-hosting sites do with notebooks, the waterfall is a readable nested list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from agent_gateway_client.traces.facts import SpanFacts, cost_text, duration_text, total_cost
from agent_gateway_client.traces.read import JoinedTrace, missing_parents_text
from agent_gateway_client.traces.time_spent import TimeSpent, time_spent
from agent_gateway_client.traces.waterfall_rows import COLUMNS, Scale, count_text, errors_of, next_errors, rows

_STYLE = Path(__file__).with_name("waterfall.css")
_ALL_OPEN = 60
"""Maximum number of spans to expand all; in longer traces only paths to failed, open or slow spans are expanded."""
_SLOW = 0.05
"""Share of the trace's time from which a span is slow."""
_TICKS = 6
_LATE_TICK, _LAST_TICK = 0.7, 0.9
"""Shares of the axis from which a mark's text does not fit where the column is narrow, and where it is wide."""
_COLUMN_CLASSES = {"Span": "name"}
_STEP_PX = 14.0
_INDENT_PX = 130.0
"""Indentation per level, and its maximum for all levels."""
_DENSE_PX = 5.0
"""Indentation below which the guide lines are hidden, because they would form a grey area."""


def waterfall(joined: JoinedTrace) -> str:
    """Return the waterfall as an HTML element for any page."""
    spans = joined.spans
    began = min((span.start_ns for span in spans), default=0)
    ended = max((span.end_ns or span.start_ns for span in spans), default=0)
    spent = time_spent(spans)
    scale = Scale(_prefix(joined), began, max(ended - began, 1), _opened(spans, spent), next_errors(spans))
    deepest = max((span.depth for span in spans), default=0)
    step = min(_STEP_PX, _INDENT_PX / max(deepest, 1))
    tick = _tick(scale.length)
    dense = " dense" if step < _DENSE_PX else ""
    sizes = f"--step:{step:.3f}px;--tick:{100 * tick / scale.length:.3f}%"
    return (
        f'<div class="agent-gateway{dense}" style="{sizes}"><style>{_STYLE.read_text()}</style>'
        f"{_heading(joined, scale)}{_warning(joined)}{_time_spent(spent)}{_legend(joined)}"
        f"{_columns(scale.length, tick)}{rows(spans, joined.linked, scale)}</div>"
    )


def page(joined: JoinedTrace) -> str:
    """Return the waterfall as a page."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Blocks all requests and scripts, as a second line of defense.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Trace {escape(joined.trace_id)}</title>"
        "<style>html{background:light-dark(#fff,#0d1117)}body{margin:0 auto;max-width:1400px;padding:16px}"
        "@media(max-width:720px){body{padding:4px}}</style>"
        f"</head><body>{waterfall(joined)}</body></html>\n"
    )


def _prefix(joined: JoinedTrace) -> str:
    # Unique per trace on a page; hashed because a trace's id is untrusted.
    return f"agw-{hashlib.sha256(joined.trace_id.encode()).hexdigest()[:8]}-"


def _opened(spans: Sequence[SpanFacts], spent: TimeSpent) -> frozenset[str]:
    """Return the ids of the expanded spans: all, or the ancestors of failed, open and slow spans."""
    if len(spans) <= _ALL_OPEN:
        return frozenset(span.span_id for span in spans)
    opened = set()
    path: list[str] = []
    for span in spans:
        del path[span.depth :]
        is_slow = spent.on_path.get(span.span_id, 0) >= _SLOW * spent.total_ns
        if span.depth == 0 or span.status == "ERROR" or span.end_ns is None or is_slow:
            opened.update(path)
        path.append(span.span_id)
    # Always expand the top level.
    return frozenset(opened | {span.span_id for span in spans if span.depth == 0})


def _heading(joined: JoinedTrace, scale: Scale) -> str:
    spans = joined.spans
    usage = joined.trace.info.token_usage or {}
    facts = [
        escape(duration_text(scale.length if spans else 0)),
        count_text(len(spans), "span"),
        count_text(sum(span.kind == "gateway" for span in spans), "gateway call"),
    ]
    if failed := errors_of(spans):
        facts.append(
            f'<a class="errors" href="#{scale.prefix}{escape(failed[0])}">{count_text(len(failed), "error")}</a>'
        )
    if usage:
        facts.append(f"{usage.get('input_tokens', 0):,} + {usage.get('output_tokens', 0):,} tokens")
    if cost := cost_text(total_cost(spans)):
        facts.append(escape(cost))
    name = escape(joined.trace_id)
    linked = f'<a href="{escape(joined.url)}" rel="noopener">{name}</a>' if joined.url else name
    return f'<p class="heading"><b>{linked}</b> {" · ".join(facts)}</p>'


def _warning(joined: JoinedTrace) -> str:
    text = missing_parents_text(joined.spans)
    return f'<p class="warning">{escape(text)}</p>' if text else ""


def _time_spent(spent: TimeSpent) -> str:
    """Draw where the time went: a line of text, which is also the legend of the bar below it."""
    percentages = spent.percentages
    if not percentages:
        return ""
    parts = [
        f'<span class="share {_share_class(name)}"><i></i>{spent.label(name)} {percent} % '
        f"<small>{escape(duration_text(spent.shares[name]))}</small></span>"
        for name, percent in percentages.items()
    ]
    bar = "".join(
        f'<i class="{_share_class(name)}" style="width:{percent}%"></i>' for name, percent in percentages.items()
    )
    return (
        f'<p class="spent"><b>Where the time went:</b> {", ".join(parts)}</p>'
        f'<div class="shares" aria-hidden="true">{bar}</div>'
    )


def _share_class(name: str) -> str:
    return {"provider": "attempt", "gateway": "gateway", "network": "network", "unseen calls": "unknown"}.get(
        name, "own"
    )


def _legend(joined: JoinedTrace) -> str:
    kinds = {"own": "agent", "gateway": "gateway", "attempt": "provider attempt", "engine": "model server"}
    shown = {span.kind for span in joined.spans}
    entries = [f'<li class="{kind}"><i></i>{text}</li>' for kind, text in kinds.items() if kind in shown]
    if errors_of(joined.spans):
        entries.append('<li class="error"><i></i>failed</li>')
    if any(span.end_ns is None for span in joined.spans):
        entries.append('<li class="running"><i></i>still running</li>')
    return f'<ul class="legend" aria-label="Colours of the bars">{" ".join(entries)}</ul>' if entries else ""


def _columns(length: int, tick: int) -> str:
    marks = "".join(
        f'<span class="tick{" late" if at > _LATE_TICK * length else ""}" style="left:{100 * at / length:.3f}%">'
        f"{duration_text(at)}</span>"
        for at in range(0, length, tick)
        # A mark further to the right would be cut off.
        if at <= _LAST_TICK * length
    )
    cells = [
        f'<span class="{_COLUMN_CLASSES.get(column, column.lower())}">{marks if column == "Time" else column}</span>'
        for column in COLUMNS
    ]
    return f'<div class="columns">{" ".join(cells)}</div>'


def _tick(length: int) -> int:
    """Return the nanoseconds between two marks of the time axis: a round number that gives a few marks."""
    exact = length / _TICKS
    magnitude: int = 10 ** (len(str(int(exact))) - 1)
    steps = (factor * magnitude for factor in (1, 2, 5))
    return max(1, next((step for step in steps if step >= exact), 10 * magnitude))
