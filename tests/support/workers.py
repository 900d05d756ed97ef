"""A demo gateway with several server processes, all of them warm."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from agent_gateway_client.demo._warm_up import warm_up
from agent_gateway_client.demo.gateway import DemoGateway

# A call takes seconds in a cold process, and some 50 ms in a warm one, or several times that under load.
# This is for two calls.
_WARM_S = 2.0
_MAX_ROUNDS = 10


@contextmanager
def gateway_with_workers(workers: int, app_name: str | None = "agent-gateway", **options: Any) -> Iterator[DemoGateway]:
    """Start a gateway with that many server processes, and stop it at the end.

    The answers do not identify their worker. So this makes rounds of concurrent calls on separate connections until
    two successive rounds have no slow call.
    """
    with DemoGateway(app_name, options=["--workers", str(workers)], **options) as gateway:
        endpoint = gateway.create_endpoint("warm-up-workers", ["gpt-4o-mini"])

        def call(_: int) -> float:
            began = time.monotonic()
            warm_up(f"{gateway.openai_base_url}/chat/completions", "warm-up-workers")
            return time.monotonic() - began

        quick_rounds = 0
        with ThreadPoolExecutor(workers * 4) as pool:
            for _ in range(_MAX_ROUNDS):
                slowest = max(pool.map(call, range(workers * 4)))
                quick_rounds = quick_rounds + 1 if slowest < _WARM_S else 0
                if quick_rounds == 2:
                    break
        gateway._endpoints_of_server().delete(endpoint)
        gateway.provider.clear()
        yield gateway
