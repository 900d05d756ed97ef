"""A joined trace as a waterfall in HTML: one self-contained element, without scripts and without anything from outside.

What a trace says is not to be trusted: every text of it is escaped, and nothing of it becomes a class, a style or an
address. Where a page takes styles away, as code-hosting sites do with notebooks, a readable table is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from agent_gateway_client.traces.facts import SpanFacts, cost_text, duration_text, total_cost, with_ends
from agent_gateway_client.traces.read import JoinedTrace

_STYLE = Path(__file__).with_name("waterfall.css")
_COLUMNS = ("Span", "Time", "Duration", "Status", "Model", "Tokens", "Cost")
_MAX_INDENT = 12
_STATUS_CLASS = {"OK": "ok", "ERROR": "error"}


def waterfall(joined: JoinedTrace) -> str:
    """Return the waterfall as one HTML element that can be put into any page."""
    spans = joined.spans
    began = min((span.start_ns for span in spans), default=0)
    ended = max((span.end_ns or span.start_ns for span in spans), default=0)
    table = _table(spans, joined.linked, began, max(ended - began, 1))
    return (
        f'<div class="agent-gateway"><style>{_STYLE.read_text()}</style>{_heading(joined, ended - began)}{table}</div>'
    )


def page(joined: JoinedTrace) -> str:
    """Return the waterfall as a page of its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # Nothing is fetched and nothing runs, whatever gets into the page.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Trace {escape(joined.trace_id)}</title>"
        "<style>html{background:light-dark(#fff,#0d1117)}body{margin:0 auto;max-width:1200px;padding:16px}</style>"
        f"</head><body>{waterfall(joined)}</body></html>\n"
    )


def _heading(joined: JoinedTrace, nanoseconds: int) -> str:
    spans = joined.spans
    gateway_spans = [span for span in spans if span.kind == "gateway"]
    usage = joined.trace.info.token_usage or {}
    facts = [
        duration_text(nanoseconds),
        _count(len(spans), "span"),
        _count(len(gateway_spans), "gateway call"),
    ]
    if usage:
        facts.append(f"{usage.get('input_tokens', 0)} + {usage.get('output_tokens', 0)} tokens")
    if cost := cost_text(total_cost(spans)):
        facts.append(cost)
    name = escape(joined.trace_id)
    linked = f'<a href="{escape(joined.url)}" rel="noopener">{name}</a>' if joined.url else name
    return f'<p class="heading"><b>{linked}</b> {" · ".join(escape(fact) for fact in facts)}</p>'


def _table(spans: Sequence[SpanFacts], linked: Mapping[str, Sequence[SpanFacts]], began: int, length: int) -> str:
    head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    rows = []
    for index, (span, ended) in enumerate(with_ends(spans)):
        rows.append(_row(span, began, length, is_low=index > len(spans) // 2))
        rows += [
            _linked_row(own, one.depth + 1, began, length)
            for one in ended
            if (own := linked.get(one.linked_trace_id or ""))
        ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _linked_row(spans: Sequence[SpanFacts], depth: int, began: int, length: int) -> str:
    deeper = [span._replace(depth=span.depth + depth + 1) for span in spans]
    return (
        f'<tr class="linked"><td colspan="{len(_COLUMNS)}"><details><summary>{_indent(depth)}'
        f"<span>the gateway's own trace, {_count(len(spans), 'span')}</span></summary>"
        f"{_table(deeper, {}, began, length)}</details></td></tr>"
    )


def _row(span: SpanFacts, began: int, length: int, is_low: bool) -> str:
    left = 100 * (span.start_ns - began) / length
    width = 100 * ((span.end_ns or span.start_ns) - span.start_ns) / length
    # The gateway's own trace may begin before the caller's by its clock.
    left = min(max(left, 0.0), 100.0)
    width = min(max(width, 0.0), 100.0 - left)
    status = span.status if span.error_type is None else f"{span.status} {span.error_type}"
    classes = [span.kind, _STATUS_CLASS.get(span.status, "unset"), *(["low"] if is_low else [])]
    attributes = {"span": span.name, "span_id": span.span_id, **span.attributes}
    tip = "\n".join(f"{key}: {value}" for key, value in attributes.items())
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in attributes.items())
    return (
        f'<tr class="{" ".join(classes)}">'
        f'<td class="name" data-tip="{escape(tip)}"><details>'
        f"<summary>{_indent(span.depth)}<span>{escape(span.name)}</span></summary>"
        f"<dl>{listed}</dl></details></td>"
        f'<td class="time"><div><i style="left:{left:.3f}%;width:{width:.3f}%"></i></div></td>'
        f'<td class="duration">{escape(span.duration)}</td>'
        f'<td class="status">{escape(status)}</td>'
        f'<td class="model">{escape(span.model or "")}</td>'
        f'<td class="tokens">{escape(span.tokens or span.timings)}</td>'
        f'<td class="cost">{escape(span.cost_text)}</td></tr>'
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _indent(depth: int) -> str:
    # Characters, and not a style: a table without its styles is still a tree.
    return f'<span class="indent">{"&emsp;" * min(depth, _MAX_INDENT)}</span>'
