"""time_spent.py: each moment of a trace belongs to one of provider, gateway, network and agent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Span

from agent_gateway_client.traces.time_spent import TimeSpent, time_spent, time_spent_text
from tests.support.trace_samples import MILLISECOND, joined, span


def shares(*spans: Span) -> dict[str, float]:
    """The milliseconds of those that took some."""
    spent = time_spent(joined(*spans).spans)
    return {name: ns / MILLISECOND for name, ns in spent.shares.items() if ns}


def call(start: int, end: int, number: int = 2, parent: int = 1) -> list[Span]:
    """A call with autologging: 5 ms of network and 10 ms of gateway on either side of the provider."""
    return [
        span(number, parent, "Completions", start, end, mlflow__spanType="CHAT_MODEL"),
        span(number + 1, number, "gateway/chat", start + 5, end - 5),
        span(number + 2, number + 1, "provider/openai/m", start + 15, end - 15),
    ]


def test_a_call_in_an_agent():
    assert shares(span(1, None, "agent", 0, 200), *call(20, 120)) == {
        "provider": 70, "gateway": 20, "network": 10, "agent": 100
    }  # fmt: skip


def test_without_a_span_of_the_call_the_network_is_not_told_apart():
    """Nobody has measured where the agent ends and the network begins, and the line says so."""
    spans = [span(1, None, "agent", 0, 100), span(2, 1, "gateway/chat", 10, 90)]
    assert shares(*spans) == {"gateway": 80, "agent": 20}
    assert time_spent_text(joined(*spans).spans).endswith("gateway 80 % (80 ms), agent and network 20 % (20 ms)")


def test_calls_side_by_side_count_by_the_one_that_was_waited_for():
    """The call that ended first was not waited for while the other one ran."""
    fan_out = [*call(0, 100, 10), *call(0, 60, 20)]
    assert shares(span(1, None, "agent", 0, 100), *fan_out) == {"provider": 70, "gateway": 20, "network": 10}


def test_time_between_attempts_is_the_gateways():
    assert shares(
        span(1, None, "gateway/chat", 0, 100),
        span(2, 1, "provider/openai/a", 10, 30, error__type="503"),
        span(3, 1, "provider/openai/b", 50, 90),
    ) == {"provider": 60, "gateway": 40}


def test_a_gateway_behind_a_gateway():
    """What is around the second one's mirror is the network between the two, and not the provider."""
    assert shares(
        span(1, None, "gateway/chat", 0, 100),
        span(2, 1, "provider/openai/next", 10, 90),
        span(3, 2, "gateway/next", 20, 80),
        span(4, 3, "provider/openai/m", 30, 70),
    ) == {"provider": 40, "gateway": 40, "network": 20}


def test_a_model_call_that_no_gateway_mirrors_is_named():
    """It may be slow for any reason; that is not the agent's time."""
    llm = span(2, 1, "Completions", 10, 90, mlflow__spanType="CHAT_MODEL")
    assert shares(span(1, None, "agent", 0, 100), llm) == {"unseen calls": 80, "agent": 20}


def test_a_gateway_whose_clock_differs():
    """Its mirror is moved into the caller's span, with what is below it."""
    assert (
        shares(
            span(1, None, "Completions", 1000, 1100, mlflow__spanType="LLM"),
            span(2, 1, "gateway/chat", 1060, 1150),
            span(3, 2, "provider/openai/m", 1070, 1140),
        )["provider"]
        == 70
    )


def test_a_span_that_is_running_lasts_until_the_end():
    agent, tools = span(1, None, "agent", 0, None), [span(9, 1, "tool", 60, None), span(8, 1, "tool", 50, 100)]
    assert shares(agent, *call(0, 50), *tools) == {"agent": 50, "provider": 20, "gateway": 20, "network": 10}


def test_percentages_add_up():
    thirds = TimeSpent(3, {"provider": 1, "gateway": 1, "network": 0, "agent": 1}, False, {})
    assert thirds.percentages == {"provider": 34, "gateway": 33, "agent": 33}


def test_the_line():
    spans = joined(span(1, None, "agent", 0, 200), *call(20, 120)).spans
    assert time_spent_text(spans) == (
        "Where the time went: provider 35 % (70 ms), gateway 10 % (20 ms), network 5 % (10 ms), agent 50 % (100 ms)"
    )
    assert time_spent_text([]) == time_spent_text(joined(span(1, None, "agent", 5, 5)).spans) == ""


@st.composite
def trees(draw: st.DrawFn) -> list[Span]:
    """Any spans at all, in any order of parents, also each other's."""
    names = st.sampled_from(["agent", "gateway/chat", "provider/openai/m"])
    return [
        span(number, draw(st.sampled_from([None, *range(1, 9)])), draw(names), start := draw(st.integers(0, 99)),
             draw(st.one_of(st.none(), st.integers(start, 150))))
        for number in range(1, draw(st.integers(1, 8)) + 1)
    ]  # fmt: skip


@pytest.mark.slow
@given(trees())
def test_no_moment_is_lost_and_none_counts_twice(spans: list[Span]):
    spent = time_spent(joined(*spans).spans)
    assert sum(spent.shares.values()) == spent.total_ns
    assert all(ns >= 0 for ns in spent.shares.values())
    assert sum(spent.percentages.values()) == (100 if spent.total_ns else 0)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3000])
def test_a_very_deep_trace(depth: int):
    """Deeper than Python's own stack."""
    steps = [span(number, number - 1 or None, "step", number, 2 * depth - number) for number in range(1, depth + 1)]
    assert len(time_spent(joined(*steps).spans).on_path) == depth - 1
