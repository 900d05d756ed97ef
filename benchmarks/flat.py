"""Whether the cost of a call depends on the number in flight or on the number before it; and whether memory grows."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.export import Exporter
from benchmarks.asgi import BODY, START, TRACED, Application, Nowhere, receive, scope, send
from benchmarks.measure import Samples, added, estimate, interleave, ratio
from benchmarks.report import Report

IN_FLIGHT = (1, 10, 100, 1_000)
CALLS = 1_000
MIRRORS = 200_000
STEP = 20_000


def run(report: Report) -> None:
    in_flight(report)
    many(report)


def in_flight(report: Report) -> None:
    """Calls that all wait for their provider concurrently."""
    exporter = Exporter(Nowhere())
    ours = GatewayTracingMiddleware(_answer_later, exporter)
    cases: dict[str, Callable[[], float]] = {}
    for count in IN_FLIGHT:
        cases[f"bare {count}"] = partial(_together, _answer_later, count, exporter)
        cases[f"ours {count}"] = partial(_together, ours, count, exporter)
    samples = interleave(cases, seconds=4)

    def cost(count: int) -> Callable[[Samples], float]:
        return added(f"ours {count}", f"bare {count}")

    group = "one request of an ASGI gateway, in flight at once"
    for count in IN_FLIGHT:
        value, low, high = (1e6 * number for number in estimate(cost(count), samples))
        times, times_low, times_high = estimate(ratio(cost(count), cost(1)), samples)
        interval = {"ratio_low": times_low, "ratio_high": times_high, "ratio_of": "1"}
        report.add(group, f"{count:,}", value, "µs", low=low, high=high, ratio=times, **interval)
    worst, _, _ = estimate(ratio(cost(IN_FLIGHT[-1]), cost(1)), samples)
    report.mark("Cost with 1,000 calls in flight, in terms of one", worst, 1.1)


def many(report: Report) -> None:
    """Calls in sequence, converted to spans and sent away, up to the 200,000th."""
    exporter = Exporter(Nowhere())
    ours = GatewayTracingMiddleware(_answer_later, exporter)
    costs, memory = [], []
    for _ in range(MIRRORS // STEP):
        bare, found = [], []
        for number in range(STEP // CALLS):
            found.append(_together(ours, 1, exporter))
            if number % 2:
                bare.append(_together(_answer_later, 1, exporter))
        exporter.flush()
        costs.append(1e6 * float(np.median(found) - np.median(bare)))
        memory.append(_resident_megabytes())
    assert exporter.dropped == 0
    group = "one request of an ASGI gateway, from the first mirror to the last"
    report.add(group, f"mirrors up to {2 * STEP:,}", float(np.mean(costs[:2])), "µs")
    share = float(np.mean(costs[-2:]) / np.mean(costs[:2]))
    report.add(group, f"mirrors up to {MIRRORS:,}", float(np.mean(costs[-2:])), "µs", ratio=share, ratio_of="the first")
    report.mark("Cost at the 200,000th mirror, in terms of the first", share, 1.1)
    report.add("memory of the process", f"after {STEP:,} mirrors", memory[0], "MB")
    report.add("memory of the process", f"after {MIRRORS:,} mirrors", memory[-1], "MB")
    report.mark("Memory after 200,000 mirrors, in terms of that after 20,000", memory[-1] / memory[0], 1.05)


async def _answer_later(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await scope["wait"]()
    await send(START)
    await send(BODY)


def _together(app: Application, count: int, exporter: Exporter) -> float:
    """Return the seconds of processor time per call; this many calls wait until all of them do."""

    async def requests() -> float:
        arrived = 0
        everybody = asyncio.Event()

        async def wait() -> None:
            nonlocal arrived
            arrived += 1
            if arrived % count == 0:
                everybody.set()
            await everybody.wait()

        begin = time.thread_time()
        for _ in range(CALLS // count):
            everybody.clear()
            await asyncio.gather(*(app({**request, "wait": wait}, receive, send) for _ in range(count)))
        return (time.thread_time() - begin) / CALLS

    request = scope(TRACED)
    # The thread that converts earlier calls to spans would otherwise share this one's caches.
    exporter.flush()
    return asyncio.run(requests())


def _resident_megabytes() -> float:
    """Return the resident memory of this process on Linux."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
