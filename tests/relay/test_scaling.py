"""docs/scaling.md: the simulation of benchmarks/scaling.py produces its table, and the plans hold."""

from pathlib import Path

import pytest

from benchmarks.scaling import STEPS, plan_for, simulate, table, without_one_mlflow

DOCS = Path(__file__).parents[2] / "docs" / "scaling.md"
OUTAGE = range(300, 600)

each_step = pytest.mark.parametrize(("calls_per_s", "sampled"), STEPS)


@each_step
def test_a_planned_installation_keeps_up(calls_per_s: int, sampled: float):
    """Nothing is lost, and no mirror waits long behind others."""
    outcome = simulate(plan_for(calls_per_s, sampled))
    assert outcome.lost == 0
    assert outcome.worst_delay_s < 20
    assert outcome.mirrored + outcome.waiting == outcome.arrived


@each_step
def test_mlflow_away_for_five_minutes(calls_per_s: int, sampled: float):
    """The queues hold what arrives, and are empty again by the end."""
    plan = plan_for(calls_per_s, sampled)
    outcome = simulate(plan, seconds=3600, mlflow_away=OUTAGE)
    assert outcome.lost == 0
    assert outcome.waiting < 20 * plan.traced_per_s + 100


@pytest.mark.parametrize("calls_per_s", [1_000, 10_000])
def test_too_few_mlflow_servers(calls_per_s: int):
    """MLflow saturates first: with too few processes the queues fill and calls are lost."""
    outcome = simulate(without_one_mlflow(plan_for(calls_per_s, 1.0)), seconds=7200)
    assert outcome.lost > 0


def test_a_relay_that_is_lost():
    """The others take over its load if there are enough of them."""
    plan = plan_for(100_000, 1.0)
    assert simulate(plan, relays_lost=1).lost == 0


def test_the_same_seed_tells_the_same():
    """The same seed gives the same result."""
    plan = plan_for(100, 1.0)
    assert simulate(plan) == simulate(plan)
    assert simulate(plan) != simulate(plan, seed=17)


def test_the_documents_table():
    """The document has the planned rows."""
    text = DOCS.read_text()
    for row in table():
        assert row in text
