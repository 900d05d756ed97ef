"""Makes a gateway's first calls, which are slow because the server imports packages."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from agent_gateway_client.errors import StartError

DEADLINE_S = 180.0

# A call takes seconds in a cold process, and some 50 ms in a warm one, or several times that under load.
_WARM_S = 1.0
_MAX_ROUNDS = 10


def warm_up(url: str, endpoint: str, workers: int, credentials: tuple[str, str] | None = None) -> None:
    """Call an endpoint until all workers are probably warm.

    The answers do not identify their worker. So this makes rounds of concurrent calls on separate connections
    until two successive rounds have no slow call.

    Args:
        url: URL of the chat completions route.
        endpoint: Name of the endpoint to call.
        workers: Number of server processes.
        credentials: User name and password, if the server requires them.

    Raises:
        StartError: The endpoint answers with an error or times out.
    """
    body: dict[str, object] = {"model": endpoint, "messages": [{"role": "user", "content": "Are you warm?"}]}
    auth = httpx.BasicAuth(*credentials) if credentials else None

    def call(_: int) -> float:
        began = time.monotonic()
        try:
            with httpx.Client(trust_env=False, timeout=DEADLINE_S, auth=auth) as client:
                response = client.post(url, json=body)
        except httpx.HTTPError as error:
            raise StartError(f"The gateway's first call failed: {type(error).__name__}: {error}.") from error
        if response.status_code != httpx.codes.OK:
            raise StartError(
                f"The gateway's first call failed with status {response.status_code}: {response.text[:500]}."
            )
        return time.monotonic() - began

    call(0)
    # MLflow imports LangChain, if installed, during the first stream, and does not answer other requests meanwhile. A
    # client that asks for the server's version then assumes until its restart that the server cannot store spans.
    body["stream"] = True
    call(0)
    if workers == 1:
        return
    quick_rounds = 0
    with ThreadPoolExecutor(workers * 4) as pool:
        for _ in range(_MAX_ROUNDS):
            slowest = max(pool.map(call, range(workers * 4)))
            quick_rounds = quick_rounds + 1 if slowest < _WARM_S else 0
            if quick_rounds == 2:
                return
