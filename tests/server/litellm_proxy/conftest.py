"""Fixtures for the tests of LiteLLM Proxy's callback."""

from collections.abc import Iterator

import pytest

from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.litellm_proxy import LiteLLMProxyMirror
from tests.support.server import MemoryDestination


@pytest.fixture
def destination() -> MemoryDestination:
    return MemoryDestination()


@pytest.fixture
def mirror(destination: MemoryDestination) -> Iterator[LiteLLMProxyMirror]:
    mirror = LiteLLMProxyMirror(Exporter(destination))
    yield mirror
    mirror.shutdown()
