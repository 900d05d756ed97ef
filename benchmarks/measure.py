"""Cases side by side: each round runs all of them in random order, so that a disturbance affects all alike."""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000
_BASE_SEED = 2024

Samples = dict[str, "np.ndarray[Any, Any]"]
"""Seconds per call of each case, one number per round."""


def loop(function: Callable[[], Any], calls: int, batches: int = 10) -> Callable[[], float]:
    """Return a function that runs another many times and returns the least seconds of processor time per call.

    This thread's processor time, because the machine's other work is not part of the call; and the least of some
    batches, because that work also slows the call down: it empties the processor's caches.

    Args:
        function: The call.
        calls: How often it runs.
        batches: In how many batches.
    """
    batch = calls // batches

    def timed() -> float:
        least = math.inf
        for _ in range(batches):
            begin = time.thread_time()
            for _ in range(batch):
                function()
            least = min(least, (time.thread_time() - begin) / batch)
        return least

    return timed


def interleave(cases: Mapping[str, Callable[[], float]], seconds: float, warm_up: int = 3, least: int = 20) -> Samples:
    """Run the cases in rounds for this many seconds.

    Args:
        cases: Each runs a batch of calls and returns the seconds per call.
        seconds: The duration.
        warm_up: Rounds before that, which are discarded.
        least: The minimum of rounds, however long they take.
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
    """The median of the additional time of a case over another in the same round: see :func:`paired`."""
    return lambda samples: float(np.median(samples[case] - samples[base]))


def ratio(over: Statistic, under: Statistic) -> Statistic:
    """The quotient of two statistics."""
    return lambda samples: over(samples) / under(samples)


def paired(case: str, base: str) -> Statistic:
    """The median ratio of a case to another in the same round, which cancels what is particular to a round."""
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
