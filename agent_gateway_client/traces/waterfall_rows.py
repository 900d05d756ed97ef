"""The rows of a waterfall: nested lists, in which each span has a line, its attributes, and its children."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from agent_gateway_client.traces.facts import SpanFacts, duration_text, with_ends

COLUMNS = ("Span", "Start", "Time", "Duration", "Status", "Model", "Tokens", "Cost")

_MAX_NESTING = 60
"""Maximum nesting of lists, because browsers flatten deeper ones. Deeper spans are siblings."""

_NUMBERED_FROM = 12
"""Depth from which a row shows its depth as a number."""

_STATUS_CLASS = {"OK": "ok", "ERROR": "error"}


class Scale(NamedTuple):
    """The settings for all rows of a waterfall.

    Attributes:
        prefix: The prefix of the rows' ids.
        began: Start of the trace, in nanoseconds since the epoch.
        length: Duration of the trace in nanoseconds; at least one.
        opened: Ids of the spans that are expanded at first.
        next_error: By the id of a failed span, the id of the next one.
    """

    prefix: str
    began: int
    length: int
    opened: frozenset[str]
    next_error: Mapping[str, str]


def errors_of(spans: Sequence[SpanFacts]) -> list[str]:
    """Return the ids of the spans that failed."""
    return [span.span_id for span in spans if span.status == "ERROR"]


def next_errors(spans: Sequence[SpanFacts]) -> dict[str, str]:
    """Return, by the id of a failed span, the id of the next one."""
    return dict(pairwise(errors_of(spans)))


def rows(spans: Sequence[SpanFacts], linked: Mapping[str, Sequence[SpanFacts]], scale: Scale, depth: int = 0) -> str:
    """Return the list of a trace's spans.

    Args:
        spans: In the order of :func:`~agent_gateway_client.traces.facts.facts_of`.
        linked: By trace id, the spans of the gateways' own traces.
        scale: The settings.
        depth: Additional levels of indentation.
    """
    nested = [span._replace(depth=min(span.depth, _MAX_NESTING)) for span in spans]
    counts = _counts_below(nested)
    parts = ["<ul>"]
    for span, (same, ended) in zip(spans, with_ends(nested), strict=True):
        parts.append(_row(span, scale, depth + span.depth))
        if count := counts[same.span_id]:
            parts.append(_fold(count, same.span_id in scale.opened))
        for one in ended:
            if counts[one.span_id]:
                parts.append("</ul></details>")
            if own := linked.get(one.linked_trace_id or ""):
                parts.append(_linked(own, scale, depth + one.depth))
            parts.append("</li>")
    return "".join([*parts, "</ul>"])


def count_text(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _counts_below(spans: Sequence[SpanFacts]) -> dict[str, int]:
    places = {span.span_id: place for place, span in enumerate(spans)}
    counts = {}
    for place, (span, ended) in enumerate(with_ends(spans)):
        counts[span.span_id] = 0
        for one in ended:
            counts[one.span_id] = place - places[one.span_id]
    return counts


def _fold(count: int, is_open: bool) -> str:
    opened = " open" if is_open else ""
    return f'<details class="below"{opened}><summary>{count_text(count, "span")} below</summary><ul>'


def _linked(spans: Sequence[SpanFacts], scale: Scale, depth: int) -> str:
    title = f"the gateway's own trace, {count_text(len(spans), 'span')}"
    # Its spans are not in the trace, so they have no anchors; all are expanded.
    opened = scale._replace(prefix="", opened=frozenset(span.span_id for span in spans), next_error={})
    return (
        f'<details class="linked" style="--depth:{depth + 1}"><summary>{title}</summary>'
        f"{rows(spans, {}, opened, depth + 2)}</details>"
    )


def _row(span: SpanFacts, scale: Scale, depth: int) -> str:
    is_running = span.end_ns is None
    classes = [span.kind, _STATUS_CLASS.get(span.status, "unset"), *(["running"] if is_running else [])]
    anchor = f' id="{scale.prefix}{escape(span.span_id)}"' if scale.prefix else ""
    level = f'<span class="level">{depth}</span> ' if depth >= _NUMBERED_FROM else ""
    status = span.status if span.error_type is None else f"{span.status} {span.error_type}"
    attributes = {"span": span.name, "span_id": span.span_id, **span.attributes}
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in attributes.items())
    # Spaces between the cells separate them on a page without styles and in copied text.
    return (
        f'<li class="{" ".join(classes)}"{anchor} style="--depth:{depth}"><details class="row"><summary>'
        f'<span class="name">{level}<b>{escape(span.name)}</b></span> '
        f'<span class="start">{_offset(span.start_ns - scale.began)}</span> '
        f'<span class="time">{_bar(span, scale)}</span> '
        f'<span class="duration">{escape(span.duration)}</span> '
        # An error like client_disconnect is wider than the column: it may be broken at its underscore.
        f'<span class="status">{escape(status).replace("_", "_<wbr>")}{_next_link(span, scale)}</span> '
        f'<span class="model">{escape(span.model or "")}</span> '
        f'<span class="tokens">{_tokens(span)}</span> '
        f'<span class="cost">{escape(span.cost_text)}</span>'
        f"</summary><dl>{listed}</dl></details>"
    )


def _bar(span: SpanFacts, scale: Scale) -> str:
    end_ns = scale.began + scale.length if span.end_ns is None else span.end_ns
    left = 100 * (span.start_ns - scale.began) / scale.length
    width = 100 * (end_ns - span.start_ns) / scale.length
    # By its clock, the gateway's own trace may start before the caller's.
    left = min(max(left, 0.0), 100.0)
    width = min(max(width, 0.0), 100.0 - left)
    return f'<i style="left:{left:.3f}%;width:{width:.3f}%"></i>'


def _tokens(span: SpanFacts) -> str:
    # The column's header already says "Tokens".
    numbers = span.tokens.removesuffix(" tokens")
    if not numbers:
        return escape(span.timings)
    return f'{escape(numbers)}<span class="unit"> tokens</span>'


def _offset(nanoseconds: int) -> str:
    sign = "\N{MINUS SIGN}" if nanoseconds < 0 else "+"
    return f'<span class="unseen">starts at </span>{sign}{duration_text(abs(nanoseconds))}'


def _next_link(span: SpanFacts, scale: Scale) -> str:
    following = scale.next_error.get(span.span_id)
    if following is None or not scale.prefix:
        return ""
    return f' <a href="#{scale.prefix}{escape(following)}" title="the next error">↓</a>'
