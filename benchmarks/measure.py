"""Cases side by side: each round runs all of them, in an order of its own, so that what disturbs one disturbs all."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000
_BASE_SEED = 2024

Samples = dict[str, "np.ndarray[Any, Any]"]
"""Seconds per call of each case, one number per round."""


def loop(function: Callable[[], Any], calls: int) -> Callable[[], float]:
    """Return what runs a function so many times and returns the seconds that one call took this thread's processor.

    Processor time, because what else the machine does meanwhile is not the call's.
    """

    def timed() -> float:
        begin = time.thread_time()
        for _ in range(calls):
            function()
        return (time.thread_time() - begin) / calls

    return timed


def interleave(cases: Mapping[str, Callable[[], float]], seconds: float, warm_up: int = 3, least: int = 20) -> Samples:
    """Run the cases in rounds for so many seconds.

    Args:
        cases: Each runs a batch of calls and returns the seconds that one of them took.
        seconds: How long.
        warm_up: Rounds before that, which do not count.
        least: Rounds, however long they take.
    """
    order = list(cases)
    shuffle = random.Random(_BASE_SEED).shuffle
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(warm_up):
        for name in order:
            cases[name]()
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(found[order[0]]) < least:
        shuffle(order)
        for name in order:
            found[name].append(cases[name]())
    return {name: np.array(values) for name, values in found.items()}


Statistic = Callable[[Samples], float]


def added(case: str, base: str = "bare") -> Statistic:
    """The time that a case takes more than another in the same round, at the median: see :func:`paired`."""
    return lambda samples: float(np.median(samples[case] - samples[base]))


def ratio(over: Statistic, under: Statistic) -> Statistic:
    """One statistic in terms of another."""
    return lambda samples: over(samples) / under(samples)


def paired(case: str, base: str) -> Statistic:
    """One case in terms of another in the same round, at the median: what a round has of its own is in both."""
    return lambda samples: float(np.median(samples[case] / samples[base]))


def median(case: str) -> Statistic:
    """The median of a case."""
    return lambda samples: float(np.median(samples[case]))


def estimate(statistic: Statistic, samples: Samples) -> tuple[float, float, float]:
    """Return a statistic and its 95 % confidence interval, by resampling whole rounds."""
    count = min(len(values) for values in samples.values())
    generator = np.random.default_rng(_BASE_SEED)
    found = []
    for _ in range(RESAMPLES):
        rounds = generator.integers(0, count, count)
        found.append(statistic({name: values[rounds] for name, values in samples.items()}))
    low, high = np.percentile(found, [2.5, 97.5])
    return statistic(samples), float(low), float(high)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of measured values."""
    return float(np.percentile(values, percent))
