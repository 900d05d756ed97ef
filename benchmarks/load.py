"""A closed loop: so many clients, each of which sends its next request when it has the answer to the last."""

import asyncio
import secrets
import time

import httpx

REQUEST = {"model": "chat", "messages": [{"role": "user", "content": "one two three"}]}


def calls_per_second(base_url: str, clients: int, seconds: float, api_key: str = "none") -> float:
    """Return how many calls a gateway answered in a second, each with a traceparent of its own."""
    return asyncio.run(_run(base_url, clients, seconds, api_key))


async def _run(base_url: str, clients: int, seconds: float, api_key: str) -> float:
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    headers = {"authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(
        base_url=base_url, limits=limits, headers=headers, timeout=60, trust_env=False
    ) as client:
        begin = time.perf_counter()
        answered = await asyncio.gather(*(_client(client, begin + seconds) for _ in range(clients)))
        return sum(answered) / (time.perf_counter() - begin)


async def _client(client: httpx.AsyncClient, deadline: float) -> int:
    answered = 0
    while time.perf_counter() < deadline:
        traceparent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        response = await client.post("/chat/completions", json=REQUEST, headers={"traceparent": traceparent})
        response.raise_for_status()
        answered += 1
    return answered
