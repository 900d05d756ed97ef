"""A closed loop: clients that each send the next request once they have the answer to the last."""

import asyncio
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import httpx

REQUEST = {"model": "chat", "messages": [{"role": "user", "content": "one two three"}]}


def closed_loop(
    base_url: str, clients: int, seconds: float, api_key: str = "none", traces: Sequence[str] = ()
) -> tuple[int, float]:
    """Call a gateway; returns the answered calls and the seconds they took.

    Args:
        base_url: The base URL of the gateway's OpenAI API.
        clients: The number of concurrent clients.
        seconds: How long they start calls.
        api_key: Their key.
        traces: Ids of the traces, 32 hexadecimal digits each, that the calls are made in, in turns; without any, each
            call is made in a new trace that the store does not know.
    """
    ids = cycle(traces) if traces else iter(lambda: secrets.token_hex(16), "")
    return asyncio.run(_run(base_url, clients, seconds, api_key, ids))


def processor_seconds(group: int) -> float:
    """Return the processor time that a group of processes has used so far, as Linux counts it."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def _run(base_url: str, clients: int, seconds: float, api_key: str, traces: Iterator[str]) -> tuple[int, float]:
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    headers = {"authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(
        base_url=base_url, limits=limits, headers=headers, timeout=60, trust_env=False
    ) as client:
        begin = time.perf_counter()
        answered = await asyncio.gather(*(_client(client, begin + seconds, traces) for _ in range(clients)))
        return sum(answered), time.perf_counter() - begin


async def _client(client: httpx.AsyncClient, deadline: float, traces: Iterator[str]) -> int:
    answered = 0
    while time.perf_counter() < deadline:
        traceparent = f"00-{next(traces)}-{secrets.token_hex(8)}-01"
        response = await client.post("/chat/completions", json=REQUEST, headers={"traceparent": traceparent})
        response.raise_for_status()
        answered += 1
    return answered
