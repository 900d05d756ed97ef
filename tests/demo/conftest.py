"""The local model provider, and clients of it."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from agent_gateway_client.demo.provider import Provider
from tests.support.model_provider import EveryApi


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[Provider]:
    with EveryApi() as provider:
        yield provider


@pytest.fixture
def provider(shared_provider: Provider) -> Provider:
    """A provider that has received nothing yet."""
    shared_provider.clear()
    return shared_provider


@pytest.fixture
def client(provider: Provider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(provider: Provider) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=provider.url, timeout=30) as client:
        yield client
