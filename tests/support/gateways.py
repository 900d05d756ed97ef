"""What the gateways of the shared scenarios have in common: the models behind them, and how they are reached."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import openai
from mlflow.tracing.client import TracingClient

from agent_gateway_client import wrap_httpx, wrap_openai
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.export.environment import store_of
from agent_gateway_client.server.export.mlflow import MlflowDestination
from tests.support.e2e import DEADLINE_S

MODELS = {
    "chat": ["gpt-4o-mini"],
    "responses": ["gpt-4o-mini"],
    "embeddings": ["text-embedding-3-small"],
    "fallback": ["gpt-4o-fail-503", "gpt-4o-mini"],
    "failing": ["gpt-4o-mini-fail-500"],
    "cut": ["gpt-4o-mini-broken-long-20"],
    "long": ["gpt-4o-mini-long"],
}
"""What every gateway offers, and the local provider's models behind it, in the order in which they are tried."""


class Column(NamedTuple):
    """A running gateway of the table.

    Attributes:
        url: Base URL of OpenAI's API there.
        key: What it asks its callers for.
        has_own_traces: Whether it keeps traces of its own, to which its mirrors lead.
        reads_one_line: Whether it sees only one line of each header, and so no second ``traceparent``.
        untold: What its mirrors cannot say, and why; docs/relay.md has each sentence.
    """

    url: str
    key: str = "none"
    has_own_traces: bool = False
    reads_one_line: bool = False
    untold: Mapping[str, str] = MappingProxyType({})

    def openai_client(self) -> openai.OpenAI:
        """Return a wrapped OpenAI client of the gateway."""
        return wrap_openai(openai.OpenAI(**self._options()))

    def async_openai_client(self) -> openai.AsyncOpenAI:
        """Return a wrapped OpenAI client of the gateway, for asyncio."""
        return wrap_openai(openai.AsyncOpenAI(**self._options()))

    def httpx_client(self, headers: dict[str, str] | None = None) -> httpx.Client:
        """Return a wrapped httpx client of the gateway."""
        headers = {"authorization": f"Bearer {self.key}", **(headers or {})}
        return wrap_httpx(httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_S))

    def _options(self) -> dict[str, Any]:
        return {"base_url": self.url, "api_key": self.key, "max_retries": 0, "timeout": DEADLINE_S}


@contextmanager
def exporter_to(tracking_uri: str) -> Iterator[Exporter]:
    """An exporter to an MLflow server, for a gateway in this process."""
    exporter = Exporter(MlflowDestination(store_of(TracingClient(tracking_uri).store)))
    yield exporter
    exporter.shutdown()


@contextmanager
def serving(server: Any) -> Iterator[str]:
    """Let a server of the standard library's kind serve, from a thread; gives its URL."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
