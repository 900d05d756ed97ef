"""What the gateways of the shared scenarios have in common: their models, and how to reach them."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import openai
from mlflow.tracing.client import TracingClient
from mlflow.version import VERSION

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
"""The models of every gateway, and the local provider's models behind each, in the order of the attempts."""

MLFLOW = tuple(map(int, VERSION.split(".")[:2]))
"""The installed version of MLflow, major and minor."""


class Column(NamedTuple):
    """A running gateway of the table.

    Attributes:
        url: Base URL of its OpenAI API.
        key: The key that callers must send.
        has_own_traces: Whether it keeps its own traces, to which its mirrors link.
        reads_one_line: Whether it sees only one line of each header, and thus no second ``traceparent``.
        streams_fall_back: Whether a stream is asked of the next model if one fails before its first chunk.
        untold: Facts that its mirrors lack, and why; docs/relay.md has each sentence.
    """

    url: str
    key: str = "none"
    has_own_traces: bool = False
    reads_one_line: bool = False
    streams_fall_back: bool = True
    untold: Mapping[str, str] = MappingProxyType({})

    def tried(self, model: str, *, streamed: bool) -> list[str]:
        """Return the provider's models that a call has to try, in order."""
        return MODELS[model][:1] if streamed and not self.streams_fall_back else MODELS[model]

    def openai_client(self) -> openai.OpenAI:
        """Return a wrapped OpenAI client for the gateway."""
        return wrap_openai(openai.OpenAI(**self._options()))

    def async_openai_client(self) -> openai.AsyncOpenAI:
        """Return a wrapped asynchronous OpenAI client for the gateway."""
        return wrap_openai(openai.AsyncOpenAI(**self._options()))

    def httpx_client(self, headers: dict[str, str] | None = None) -> httpx.Client:
        """Return a wrapped httpx client for the gateway."""
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
    """Run a server of the standard library's kind in a thread; yields its URL."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
