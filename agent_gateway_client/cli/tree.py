"""A joined trace as a tree for the terminal."""

from __future__ import annotations

from mlflow.entities import Span, SpanStatusCode, Trace
from mlflow.tracing.constant import CostKey, SpanAttributeKey, TokenUsageKey
from rich.text import Text
from rich.tree import Tree


def trace_tree(trace: Trace, tracking_uri: str) -> Tree:
    """Draw a trace: each span's name, duration, status, model, tokens, cost, and the trace it links to.

    Spans whose parent is not in the trace are drawn at the top level.

    Args:
        trace: The trace.
        tracking_uri: Base URL of MLflow, for links into its UI.
    """
    info = trace.info
    url = trace_url(tracking_uri, info.experiment_id, info.trace_id)
    tree = Tree(Text.assemble("trace ", (info.trace_id, f"bold link {url}")))
    ids = {span.span_id for span in trace.data.spans}
    children: dict[str | None, list[Span]] = {}
    for span in sorted(trace.data.spans, key=lambda s: s.start_time_ns):
        children.setdefault(span.parent_id if span.parent_id in ids else None, []).append(span)
    _grow(tree, None, children)
    return tree


def trace_url(tracking_uri: str, experiment_id: str | None, trace_id: str) -> str:
    """Address of a trace in MLflow's UI."""
    return f"{tracking_uri}/#/experiments/{experiment_id}/traces?selectedEvaluationId={trace_id}"


def _grow(branch: Tree, parent_id: str | None, children: dict[str | None, list[Span]]) -> None:
    for span in children.get(parent_id, []):
        _grow(branch.add(_label(span)), span.span_id, children)


def _label(span: Span) -> Text:
    is_error = span.status.status_code == SpanStatusCode.ERROR
    is_mirror = bool(span.get_attribute(SpanAttributeKey.LINKED_GATEWAY_TRACE_ID))
    label = Text()
    label.append(span.name, style="bold cyan" if is_mirror else "bold")
    label.append(f"  {_duration(span)}", style="dim")
    label.append("  ERROR" if is_error else "  OK", style="red" if is_error else "green")
    if kind := span.get_attribute("error.type"):
        label.append(f" {kind}", style="red")
    if model := span.get_attribute(SpanAttributeKey.MODEL):
        label.append(f"  {model}", style="magenta")
    if usage := span.get_attribute(SpanAttributeKey.CHAT_USAGE):
        label.append(f"  {_tokens(usage)}", style="default")
    if cost := span.get_attribute(SpanAttributeKey.LLM_COST):
        label.append(f"  ${cost.get(CostKey.TOTAL_COST, 0):.8f}".rstrip("0").rstrip("."), style="yellow")
    if linked := span.get_attribute(SpanAttributeKey.LINKED_GATEWAY_TRACE_ID):
        label.append(f"  -> {linked}", style="blue")
    return label


def _duration(span: Span) -> str:
    if span.end_time_ns is None:
        return "running"
    milliseconds = (span.end_time_ns - span.start_time_ns) / 1e6
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"


def _tokens(usage: dict[str, int]) -> str:
    cached = usage.get(TokenUsageKey.CACHE_READ_INPUT_TOKENS)
    read = f" ({cached} cached)" if cached else ""
    given, made = usage.get(TokenUsageKey.INPUT_TOKENS, 0), usage.get(TokenUsageKey.OUTPUT_TOKENS, 0)
    return f"{given}{read} + {made} tokens"
