"""A real LiteLLM Proxy with and without the callback: throughput in a closed loop."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from agent_gateway_client.demo.provider import Provider
from benchmarks.load import closed_loop
from benchmarks.measure import interleave
from benchmarks.report import Report
from benchmarks.stores import otlp_sink
from tests.support.litellm_proxy import MASTER_KEY, MIRROR, LiteLLMProxy, configuration

CLIENTS = 8
BARE = "without the callback"


def run(report: Report) -> None:
    with ExitStack() as stack:
        provider = stack.enter_context(Provider())
        environment = {
            "AGENT_GATEWAY_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(otlp_sink()),
        }
        configured = {BARE: [], "with the callback": MIRROR}
        proxies = []
        for callbacks in configured.values():
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            proxies.append(LiteLLMProxy(directory, configuration(provider.url, callbacks), **environment))
        with ThreadPoolExecutor() as pool:
            list(pool.map(stack.enter_context, proxies))
        urls = [f"{proxy.url}/v1" for proxy in proxies]
        cases = {name: partial(_segment, url) for name, url in zip(configured, urls, strict=True)}
        samples = interleave(cases, seconds=8, warm_up=1, least=3)
    report.compared(f"LiteLLM Proxy, {CLIENTS} clients", samples, BARE, "calls/s")


def _segment(base_url: str) -> float:
    calls, seconds = closed_loop(base_url, CLIENTS, 2, MASTER_KEY)
    time.sleep(0.5)
    return calls / seconds
