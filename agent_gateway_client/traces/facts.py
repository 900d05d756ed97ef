"""The facts of a trace that a tree or a waterfall shows, without inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

from mlflow.entities import Span, SpanStatusCode, SpanType, Trace
from mlflow.tracing.constant import CostKey, SpanAttributeKey, TokenUsageKey

from agent_gateway_client.names import GATEWAY_SPAN_PREFIX, PROVIDER_SPAN_PREFIX

Kind = Literal["own", "gateway", "attempt", "engine"]
"""The kind of a span: the agent's own, a gateway call, a provider attempt, or the run of a model server."""

_TIMINGS = {
    "gen_ai.latency.time_in_queue": "waited {} in the queue",
    "gen_ai.latency.time_in_model_prefill": "prefill {}",
    "gen_ai.latency.time_in_model_decode": "decode {}",
}
"""Attributes of a model server's span, in seconds, and their text for people."""

MAX_VALUE_LENGTH = 300
"""Maximum length of a displayed attribute value."""

_PAYLOAD_PREFIXES = (
    "mlflow.spanInputs",
    "mlflow.spanOutputs",
    "mlflow.chat.messages",
    "mlflow.chat.tools",
    "gen_ai.prompt",
    "gen_ai.completion",
    "gen_ai.input",
    "gen_ai.output",
    "gen_ai.system_instructions",
    "gen_ai.tool",
    "input.",
    "output.",
    "llm.input_messages",
    "llm.output_messages",
    "llm.prompts",
    "traceloop.entity.input",
    "traceloop.entity.output",
)
"""Attributes of MLflow, OpenTelemetry and OpenInference with inputs or outputs."""

_MODEL_CALL_TYPES = {SpanType.LLM, SpanType.CHAT_MODEL, SpanType.EMBEDDING}

_INTERNAL = {SpanAttributeKey.REQUEST_ID}


class SpanFacts(NamedTuple):
    """The facts of one span.

    Attributes:
        depth: Number of ancestors.
        name: The span's name; untrusted.
        kind: The span's kind.
        span_id: 16 hexadecimal digits.
        parent_id: The parent's id, or ``None``; the parent may be missing from the trace.
        start_ns: Start, in nanoseconds since the epoch.
        end_ns: End, in nanoseconds since the epoch; ``None`` while the span is open.
        status: ``OK``, ``ERROR`` or ``UNSET``.
        error_type: The attribute ``error.type``.
        model: The requested model.
        usage: Tokens, by MLflow's names.
        cost: In USD.
        linked_trace_id: The id of the gateway's own trace.
        attributes: All attributes except inputs and outputs; values are truncated.
    """

    depth: int
    name: str
    kind: Kind
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int | None
    status: str
    error_type: str | None
    model: str | None
    usage: dict[str, int] | None
    cost: float | None
    linked_trace_id: str | None
    attributes: dict[str, str]

    @property
    def is_model_call(self) -> bool:
        """Whether it is a client's span of a model call, as autologging creates them."""
        return self.kind == "own" and self.attributes.get(SpanAttributeKey.SPAN_TYPE) in _MODEL_CALL_TYPES

    @property
    def duration(self) -> str:
        """Its duration, for people."""
        return "running" if self.end_ns is None else duration_text(self.end_ns - self.start_ns)

    @property
    def tokens(self) -> str:
        """Its tokens, for people; ``""`` if unknown."""
        return tokens_text(self.usage) if self.usage else ""

    @property
    def timings(self) -> str:
        """Where a model server spent its time, for people; ``""`` for other spans."""
        if self.kind != "engine":
            return ""
        timings = ((text, _nanoseconds(self.attributes.get(key))) for key, text in _TIMINGS.items())
        return ", ".join(text.format(duration_text(taken)) for text, taken in timings if taken is not None)

    @property
    def cost_text(self) -> str:
        """Its cost, for people; ``""`` if unknown."""
        return cost_text(self.cost)


def facts_of(trace: Trace) -> list[SpanFacts]:
    """Return a trace's spans in display order: each after its parent, siblings by start time.

    Spans whose parents are missing are at the top level, and so is the first span of a cycle.
    """
    spans = {span.span_id: span for span in sorted(trace.data.spans, key=lambda span: span.start_time_ns)}
    children: dict[str | None, list[Span]] = {}
    for span in spans.values():
        children.setdefault(span.parent_id if span.parent_id in spans else None, []).append(span)
    found: dict[str, SpanFacts] = {}
    for top in [*children.get(None, []), *spans.values()]:
        waiting = [(0, top)]
        while waiting:
            depth, span = waiting.pop()
            if span.span_id not in found:
                found[span.span_id] = _facts(span, depth, found.get(span.parent_id or ""))
                waiting += [(depth + 1, child) for child in reversed(children.get(span.span_id, []))]
    return list(found.values())


def with_ends(spans: Sequence[SpanFacts]) -> Iterator[tuple[SpanFacts, list[SpanFacts]]]:
    """Yield each span, in the order of :func:`facts_of`, with the spans whose subtrees end with it, innermost first."""
    path: list[SpanFacts] = []
    for span, following in zip_longest(spans, spans[1:]):
        path.append(span)
        depth = following.depth if following else 0
        ended = path[depth:]
        del path[depth:]
        yield span, ended[::-1]


def total_cost(spans: Sequence[SpanFacts]) -> float | None:
    """Return a trace's cost in USD, or ``None`` if none is known.

    Like MLflow's sum of tokens: a span's cost includes its descendants', so a call is counted once if the client's span
    and the mirror both have its cost.
    """
    counted: list[float] = []
    covered_from: int | None = None
    for span in spans:
        if covered_from is not None and span.depth > covered_from:
            continue
        covered_from = None if span.cost is None else span.depth
        if span.cost is not None:
            counted.append(span.cost)
    return sum(counted) if counted else None


def cost_text(cost: float | None) -> str:
    """Return a cost for people; ``""`` if unknown."""
    return "" if cost is None else f"${cost:,.8f}".rstrip("0").rstrip(".")


def _facts(span: Span, depth: int, parent: SpanFacts | None) -> SpanFacts:
    kind: Kind = "own"
    if span.name.startswith(GATEWAY_SPAN_PREFIX):
        kind = "gateway"
    elif span.name.startswith(PROVIDER_SPAN_PREFIX) and parent is not None and parent.kind == "gateway":
        kind = "attempt"
    elif span.name.startswith("engine/") and parent is not None and parent.kind in ("gateway", "attempt"):
        kind = "engine"
    usage = span.get_attribute(SpanAttributeKey.CHAT_USAGE)
    cost = span.get_attribute(SpanAttributeKey.LLM_COST)
    total = cost.get(CostKey.TOTAL_COST) if isinstance(cost, Mapping) else None
    return SpanFacts(
        depth=depth,
        name=span.name,
        kind=kind,
        span_id=span.span_id,
        parent_id=span.parent_id,
        start_ns=span.start_time_ns,
        end_ns=span.end_time_ns,
        status={SpanStatusCode.OK: "OK", SpanStatusCode.ERROR: "ERROR"}.get(span.status.status_code, "UNSET"),
        error_type=_text_or_none(span.get_attribute("error.type")),
        model=_text_or_none(span.get_attribute(SpanAttributeKey.MODEL)),
        usage={k: v for k, v in usage.items() if isinstance(v, int)} if isinstance(usage, Mapping) else None,
        cost=float(total) if isinstance(total, (int, float)) else None,
        linked_trace_id=_text_or_none(span.get_attribute(SpanAttributeKey.LINKED_GATEWAY_TRACE_ID)),
        attributes=_shown(span.attributes),
    )


def _text_or_none(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _nanoseconds(seconds: str | None) -> float | None:
    try:
        taken = float(seconds or "") * 1e9
    except ValueError:
        return None
    return taken if 0 <= taken < float("inf") else None


def _shown(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: _cut(value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))
        for key, value in attributes.items()
        if key not in _INTERNAL and not key.startswith(_PAYLOAD_PREFIXES)
    }


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE_LENGTH else text[:MAX_VALUE_LENGTH] + "…"


def duration_text(nanoseconds: float) -> str:
    """Return a duration for people."""
    milliseconds = nanoseconds / 1e6
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:,.2f} s"
    return f"{milliseconds:.1f} ms" if 0 < milliseconds < 1 else f"{milliseconds:.0f} ms"


def tokens_text(usage: Mapping[str, int]) -> str:
    """Return tokens for people: input, with the cached part, and output."""
    cached = usage.get(TokenUsageKey.CACHE_READ_INPUT_TOKENS)
    read = f" ({cached:,} cached)" if cached else ""
    return f"{usage.get(TokenUsageKey.INPUT_TOKENS, 0):,}{read} + {usage.get(TokenUsageKey.OUTPUT_TOKENS, 0):,} tokens"


def as_objects(facts: Iterable[SpanFacts]) -> list[dict[str, Any]]:
    """Return spans as ``agent-gateway trace --json`` prints them."""
    return [
        {**one._asdict(), "duration_ms": None if one.end_ns is None else (one.end_ns - one.start_ns) / 1e6}
        for one in facts
    ]
