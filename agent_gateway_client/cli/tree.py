"""A joined trace as a tree for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text
from rich.tree import Tree

from agent_gateway_client.traces.facts import SpanFacts, with_ends
from agent_gateway_client.traces.read import JoinedTrace, missing_parents_text
from agent_gateway_client.traces.time_spent import time_spent_text

_NAME_STYLES = {"own": "bold", "gateway": "bold cyan", "attempt": "bold", "engine": "bold"}


def trace_tree(joined: JoinedTrace) -> Tree:
    """Draw a trace: each span's name, duration, status, model, tokens, cost, and link.

    Below a link are the spans of the gateway's own trace, if it was read.
    """
    label = Text("trace ")
    label.append(_printable(joined.trace_id), style=f"bold link {joined.url}" if joined.url else "bold")
    tree = Tree(label)
    _grow(tree, joined.spans, joined.linked)
    return tree


def notes(joined: JoinedTrace) -> list[Text]:
    """Return the lines below a trace: what is missing from it, and where its time went."""
    found = (Text(missing_parents_text(joined.spans), style="yellow"), Text(time_spent_text(joined.spans)))
    return [note for note in found if note]


def _grow(tree: Tree, spans: Sequence[SpanFacts], linked: Mapping[str, Sequence[SpanFacts]]) -> None:
    branches = [tree]
    for span, ended in with_ends(spans):
        branches.append(branches[-1].add(_label(span)))
        for one in ended:
            branch = branches.pop()
            if own := linked.get(one.linked_trace_id or ""):
                _grow(branch.add(Text("the gateway's own trace", style="italic dim"), style="dim"), own, {})


def _label(span: SpanFacts) -> Text:
    is_error = span.status == "ERROR"
    label = Text()
    label.append(_printable(span.name), style=_NAME_STYLES[span.kind])
    label.append(f"  {span.duration}", style="dim")
    label.append(f"  {span.status}", style="red" if is_error else "green" if span.status == "OK" else "yellow")
    if span.error_type:
        label.append(f" {_printable(span.error_type)}", style="red")
    if span.model:
        label.append(f"  {_printable(span.model)}", style="magenta")
    if span.tokens:
        label.append(f"  {span.tokens}", style="default")
    if span.timings:
        label.append(f"  {span.timings}", style="default")
    if span.cost_text:
        label.append(f"  {span.cost_text}", style="yellow")
    if span.linked_trace_id:
        label.append(f"  -> {_printable(span.linked_trace_id)}", style="blue")
    return label


def _printable(text: str) -> str:
    """Return a text from a trace without control characters, which a terminal would execute."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
