"""Spans of a call may reach different relays. Each writes correct mirrors, and together they write each mirror once."""

import itertools

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_gateway_client.server.mirror import Convention, mirror
from tests.support.otlp_spans import MODEL, attempt, collected, engine, read, root, span

LITELLM_V1 = {
    **MODEL,
    "litellm.call_id": "1",
    "llm.request.type": "acompletion",
    "litellm.provider.model": "openai/gpt-4o-mini",
    "gen_ai.operation.name": "acompletion",
}
DIRECT = [
    root(1, lasts=9),
    span(10, 1, "router"),
    attempt(2, 1, at=1, failed=True, attributes=LITELLM_V1),
    attempt(3, 1, at=3, lasts=5, attributes=LITELLM_V1),
    engine(4, 3, at=4),
]
"""LiteLLM's first callback: attempts are directly below the root."""

IN_BETWEEN = [root(1, lasts=9), span(10, 1, "dependencies"), attempt(2, 10, at=1), attempt(3, 10, at=3, lasts=5)]
"""LiteLLM's second callback: a span that is not mirrored is in between."""

Made = set[tuple[int, str, int]]


def made_of(spans: list[Span]) -> Made:
    """Return id, kind and parent of each mirror that a relay makes of spans."""
    made = (one for call in collected(read(spans)) for one in mirror(call, Convention.MLFLOW))
    return {
        (one.context.span_id, one.name.partition("/")[0], one.parent.span_id)
        for one in made
        if one.context and one.parent
    }


def divided(spans: list[Span]) -> list[tuple[list[Span], list[Span]]]:
    """Return every way to divide spans between two relays."""
    ways = itertools.product((0, 1), repeat=len(spans))
    return [tuple([one for one, to in zip(spans, way, strict=True) if to == relay] for relay in (0, 1)) for way in ways]  # type: ignore[misc]


@pytest.mark.parametrize("spans", [DIRECT, IN_BETWEEN], ids=["direct", "in between"])
def test_nothing_wrong_is_written(spans: list[Span]):
    """However the spans are divided, a relay writes only mirrors that a single relay would write too."""
    whole = made_of(spans)
    for one, other in divided(spans):
        assert made_of(one) | made_of(other) <= whole


def test_nothing_is_missing_where_attempts_are_below_the_root():
    """Together, the two write every mirror, unless the root is alone with spans that are not calls."""
    whole = made_of(DIRECT)
    for one, other in divided(DIRECT):
        together = made_of(one) | made_of(other)
        with_root = one if any(span.span_id == DIRECT[0].span_id for span in one) else other
        has_an_attempt = any(span.span_id in (DIRECT[2].span_id, DIRECT[3].span_id) for span in with_root)
        assert together == whole or not has_an_attempt
