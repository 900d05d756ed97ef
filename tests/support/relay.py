"""``agent-gateway relay`` in a separate process, and LiteLLM Proxies whose own ``otel`` callback sends to it."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from agent_gateway_client.demo._server import NOT_INHERITED
from agent_gateway_client.demo.gateway import DemoGateway
from tests.support import warm_python
from tests.support.e2e import USER
from tests.support.gateways import Column
from tests.support.litellm_proxy import LiteLLMProxy, configuration

STOP_DEADLINE_S = 60.0
LITELLM_OTEL: dict[str, dict[str, str]] = {"v1": {}, "v2": {"LITELLM_OTEL_V2": "true"}}
"""The variables that select the version of LiteLLM's callback."""


class RelayProcess:
    """A running relay.

    Attributes:
        url: The URL for traces.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def status(self) -> dict[str, Any]:
        """Return the counts of calls."""
        answer = httpx.get(self.url.replace("/v1/traces", "/agent-gateway/status"), trust_env=False)
        status: dict[str, Any] = answer.json()
        return status

    def health(self) -> dict[str, Any]:
        """Return the counts of received spans."""
        answer = httpx.get(self.url.replace("/v1/traces", "/health"), trust_env=False)
        status: dict[str, Any] = answer.json()
        return status


@contextlib.contextmanager
def relay(*arguments: str, **environment: str) -> Iterator[RelayProcess]:
    """Run a relay on a free port of loopback."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    code = "from agent_gateway_client.cli import main; main()"
    with subprocess.Popen(
        [warm_python.interpreter(), "-c", code, "relay", "--port", "0", "--settle", "1", "--wait", "5", *arguments],
        env={**inherited, "PYTHONUNBUFFERED": "1", "NO_PROXY": "127.0.0.1,localhost", **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert "Send traces to " in line, line
            yield RelayProcess(line.partition("Send traces to ")[2].partition(";")[0])
        finally:
            process.terminate()
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()


class OtelProxy(NamedTuple):
    """A LiteLLM Proxy without this package, and the relay that its spans go to."""

    column: Column
    relay: RelayProcess


@contextlib.contextmanager
def otel_proxy(directory: Path, gateway: DemoGateway, version: str) -> Iterator[OtelProxy]:
    """Run a LiteLLM Proxy with a version of its callback, and a relay that writes to a gateway's MLflow."""
    with (
        relay("--tracking-uri", gateway.tracking_uri) as receiver,
        litellm_proxy_with_otel(directory, gateway.provider.url, receiver.url, version) as proxy,
    ):
        # The first stream of a process makes LiteLLM import a lot; chunks that arrive meanwhile would be merged.
        with proxy.column.openai_client() as client:
            list(client.chat.completions.create(model="chat", messages=[USER], stream=True))  # type: ignore[list-item]
        yield OtelProxy(proxy.column, receiver)


def litellm_proxy_with_otel(directory: Path, provider_url: str, relay_url: str, version: str) -> LiteLLMProxy:
    """Return a LiteLLM Proxy without this package, whose spans go to a relay."""
    environment = {
        "OTEL_EXPORTER": "otlp_http",
        "OTEL_ENDPOINT": relay_url,
        "OTEL_BSP_SCHEDULE_DELAY": "300",
        **LITELLM_OTEL[version],
    }
    return LiteLLMProxy(directory, configuration(provider_url, ["otel"]), **environment)
