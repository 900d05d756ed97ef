"""facts.py: what is shown of a trace, whatever is in it."""

import pytest
from mlflow.entities import Span

from agent_gateway_client.traces.facts import MAX_VALUE_LENGTH, SpanFacts, total_cost
from tests.support.trace_samples import joined, span


def facts(*spans: Span) -> list[SpanFacts]:
    return joined(*spans).spans


def test_parents_come_first_and_siblings_in_order():
    shown = facts(
        span(4, 1, "second", 5, 6), span(1, None, "agent", 0, 9), span(3, 2, "below", 2, 3), span(2, 1, "first", 1, 4)
    )
    assert [(one.name, one.depth) for one in shown] == [("agent", 0), ("first", 1), ("below", 2), ("second", 1)]


def test_spans_that_are_each_others_parents_are_shown_once():
    shown = facts(span(1, 2, "hen", 0, 1), span(2, 1, "egg", 1, 2), span(3, 3, "itself", 2, 3))
    assert [(one.name, one.depth) for one in shown] == [("hen", 0), ("egg", 1), ("itself", 0)]


@pytest.mark.slow
def test_a_very_deep_trace():
    """Deeper than Python's own stack."""
    shown = facts(*(span(number, number - 1 or None, "step", number, number + 1) for number in range(1, 3001)))
    assert shown[-1].depth == 2999


def test_kinds():
    shown = facts(
        span(1, None, "provider/mine", 0, 9),
        span(2, 1, "gateway/chat", 1, 5),
        span(3, 2, "provider/openai/m", 2, 4),
        span(4, 3, "engine/m", 2, 4),
        span(5, 4, "engine/m", 2, 4),
    )
    assert [one.kind for one in shown] == ["own", "gateway", "attempt", "engine", "own"]


@pytest.mark.parametrize(
    "attribute",
    ["mlflow__spanInputs", "mlflow__spanOutputs", "mlflow__chat__tools", "gen_ai__prompt__0__content", "input__value"],
)
def test_no_inputs_and_outputs(attribute: str):
    """What is shown can be passed around; other attributes stay, cut to a length."""
    (shown,) = facts(span(1, None, "step", 0, 1, **{attribute: "secret"}, city="Lisbon", long="x" * 9000))
    assert "secret" not in str(shown)
    assert shown.attributes["city"] == "Lisbon"
    assert len(shown.attributes["long"]) == MAX_VALUE_LENGTH + 1


def test_values_of_other_kinds_than_expected_do_no_harm():
    (shown,) = facts(
        span(1, None, "step", 0, 1, mlflow__chat__tokenUsage="many", mlflow__llm__cost=[1], mlflow__llm__model=5)
    )
    assert (shown.usage, shown.cost, shown.model) == (None, None, "5")


def test_a_cost_counts_once():
    """Where a client's span knows it, its mirror's is the same; siblings and calls without autologging count each."""
    cost = {"mlflow__llm__cost": {"total_cost": 0.25}}
    shown = facts(
        span(1, None, "agent", 0, 9),
        span(2, 1, "Completions", 1, 3, **cost),
        span(3, 2, "gateway/chat", 1, 3),
        span(4, 3, "provider/openai/m", 1, 3, **cost),
        span(5, 1, "gateway/chat", 4, 6),
        span(6, 5, "provider/openai/m", 4, 6, **cost),
    )
    assert total_cost(shown) == 0.5
    assert total_cost(shown[:1]) is None
