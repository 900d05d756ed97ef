"""How many of each part it takes: a seeded simulation in steps of a second, behind the table in docs/scaling.md.

    python benchmarks/scaling.py

Calls arrive at random, gateways send them in batches, queues wait while something behind them is down, and relays
and MLflow process calls at the rate measured for one core.
"""

import math
import random
from dataclasses import dataclass, replace

RELAY_CALLS_PER_S = 1_800
"""One relay process on one core: calls of twelve spans (benchmarks/relay.py)."""

MLFLOW_CALLS_PER_S = 150
"""One MLflow process on one core with PostgreSQL beside it: 300 mirrored calls/s on two cores."""

COLLECTOR_CALLS_PER_S = 15_000
"""One collector process on one core, with the same calls."""

HEADROOM = 0.7
"""The planned share of a part's capacity."""

BATCH_S = 5
"""How long gateways keep spans: the default of OpenTelemetry's batch processor."""


@dataclass(frozen=True)
class Plan:
    """An installation.

    Attributes:
        calls_per_s: The calls that the gateways serve.
        sampled: The share that the agents trace.
        relays: Number of relay processes.
        mlflows: Number of MLflow server processes.
        queue: Calls that collectors and relays together may hold.
    """

    calls_per_s: int
    sampled: float
    relays: int
    mlflows: int
    queue: int

    @property
    def traced_per_s(self) -> float:
        """Calls per second whose mirrors are written."""
        return self.calls_per_s * self.sampled

    @property
    def collectors(self) -> int:
        """Number of collector processes."""
        return _needed(self.traced_per_s, COLLECTOR_CALLS_PER_S)


@dataclass(frozen=True)
class Outcome:
    """The results of a simulation.

    Attributes:
        arrived: Traced calls.
        mirrored: Written calls.
        lost: Calls that a full queue rejected.
        waiting: Calls that wait at the end.
        worst_delay_s: The longest that a call waited behind others.
    """

    arrived: int
    mirrored: int
    lost: int
    waiting: int
    worst_delay_s: float


def plan_for(calls_per_s: int, sampled: float, outage_s: int = 300) -> Plan:
    """Return the installation for a load that also survives ``outage_s`` seconds without MLflow."""
    traced = calls_per_s * sampled
    return Plan(
        calls_per_s,
        sampled,
        relays=_needed(traced, RELAY_CALLS_PER_S),
        mlflows=_needed(traced, MLFLOW_CALLS_PER_S),
        queue=math.ceil(1.2 * traced * (outage_s + BATCH_S)) + 1000,
    )


def simulate(
    plan: Plan, seconds: int = 900, *, mlflow_away: range = range(0), relays_lost: int = 0, seed: int = 16
) -> Outcome:
    """Simulate arriving calls for some time.

    Args:
        plan: The installation.
        seconds: The duration.
        mlflow_away: The seconds in which MLflow accepts nothing.
        relays_lost: Relays that are down from the middle on.
        seed: The seed of the arrivals.
    """
    chance = random.Random(seed)
    batches = [0] * BATCH_S
    waiting = arrived = mirrored = lost = 0
    worst = 0.0
    for second in range(seconds):
        traced = _poisson(chance, plan.traced_per_s)
        arrived += traced
        # Each gateway sends every few seconds, in a different second.
        batches[chance.randrange(BATCH_S)] += traced
        sent, batches[second % BATCH_S] = batches[second % BATCH_S], 0
        room = max(0, plan.queue - waiting)
        lost += max(0, sent - room)
        waiting += min(sent, room)
        relays = plan.relays - (relays_lost if second >= seconds // 2 else 0)
        capacity = min(relays * RELAY_CALLS_PER_S, plan.mlflows * MLFLOW_CALLS_PER_S)
        done = 0 if second in mlflow_away else min(waiting, capacity)
        waiting -= done
        mirrored += done
        worst = max(worst, waiting / capacity if capacity else math.inf)
    return Outcome(arrived, mirrored, lost, waiting + sum(batches), worst)


STEPS = ((10, 1.0), (100, 1.0), (1_000, 1.0), (10_000, 0.1), (100_000, 0.01), (100_000, 1.0))
"""Calls per second, and the share that is traced."""


def table() -> list[str]:
    """Return the rows of the table in docs/scaling.md."""
    plans = (plan_for(calls, sampled) for calls, sampled in STEPS)
    return [
        f"| {plan.calls_per_s:,} | {plan.sampled:.0%} | {plan.traced_per_s:,.0f} | {plan.collectors} | {plan.relays} |"
        f" {plan.mlflows} |"
        for plan in plans
    ]


def without_one_mlflow(plan: Plan) -> Plan:
    """Return an installation with so few MLflow processes that they cannot keep up."""
    return replace(plan, mlflows=max(1, math.floor(plan.traced_per_s / MLFLOW_CALLS_PER_S * 0.9)))


def _needed(rate: float, capacity: int) -> int:
    return max(1, math.ceil(rate / (capacity * HEADROOM)))


def _poisson(chance: random.Random, mean: float) -> int:
    """Return a random number of arrivals; for large numbers the normal distribution is close enough."""
    if mean > 50:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, chance.random()
    while product > limit:
        count += 1
        product *= chance.random()
    return count


if __name__ == "__main__":
    print("\n".join(table()))
