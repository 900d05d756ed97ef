"""A demo gateway for a notebook: one per process, or one that another process has started."""

from __future__ import annotations

import os
from typing import NamedTuple

from agent_gateway_client.errors import ConfigurationError

DEMO_VARIABLE = "AGENT_GATEWAY_DEMO"
"""A running demo gateway: its tracking URI and its model provider's URL, separated by a comma."""


class RunningGateway(NamedTuple):
    """The URLs of a demo gateway.

    Attributes:
        tracking_uri: MLflow's URL: the tracking URI, and the UI.
        provider_url: The local model provider's URL; it serves OpenAI's API below ``/v1`` without a key.
    """

    tracking_uri: str
    provider_url: str

    @property
    def gateway_url(self) -> str:
        """The gateway's URL, the prefix of all its routes."""
        return f"{self.tracking_uri}/gateway"

    @property
    def openai_base_url(self) -> str:
        """Base URL for an OpenAI client; a model is an endpoint's name."""
        return f"{self.gateway_url}/openai/v1"


_running: RunningGateway | None = None


def start_gateway() -> RunningGateway:
    """Start MLflow with its AI Gateway, the companion and a local model provider, all on this machine.

    Takes up to a minute. The gateway stops when the process ends. A second call returns the same gateway. The
    environment variable ``AGENT_GATEWAY_DEMO`` provides one that another process has started.

    Raises:
        StartError: The server did not start.
        ConfigurationError: ``AGENT_GATEWAY_DEMO`` is not two URLs.
    """
    global _running
    if _running is None:
        _running = _from_environment() or _started()
    print(f"MLflow and its gateway are at {_running.tracking_uri}")
    return _running


def _from_environment() -> RunningGateway | None:
    value = os.environ.get(DEMO_VARIABLE)
    if not value:
        return None
    urls = [url.strip().rstrip("/") for url in value.split(",")]
    if len(urls) != 2 or not all(url.startswith("http") for url in urls):
        raise ConfigurationError(
            f"{DEMO_VARIABLE} is {value!r}; give a tracking URI and a provider's URL: http://…,http://…"
        )
    return RunningGateway(*urls)


def _started() -> RunningGateway:
    from agent_gateway_client.demo.gateway import DemoGateway

    # It stops itself when the process ends.
    gateway = DemoGateway(progress=print).start()
    return RunningGateway(gateway.tracking_uri, gateway.provider.url)
