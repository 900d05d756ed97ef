"""Creates a proxy's callback from the environment, and flushes it when the proxy stops."""

import atexit
import os
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from agent_gateway_client._log import version_of, warn_once
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.server.asgi.lifespan import run_blocking
from agent_gateway_client.server.authorization import may_join_from_environment
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.export.environment import EXPORTER_VARIABLE
from agent_gateway_client.server.litellm_proxy._callback import LiteLLMProxyMirror
from agent_gateway_client.server.litellm_proxy._pages import add_pages
from agent_gateway_client.server.litellm_proxy._requests import observe_requests
from agent_gateway_client.server.observed.pages import token_from_environment
from agent_gateway_client.server.shared import shared_exporter


def mirror_from_environment() -> LiteLLMProxyMirror:
    """Create the callback. Its queue is flushed before the process ends.

    Raises:
        ConfigurationError: An environment variable has an invalid value.
    """
    token = token_from_environment()
    made = LiteLLMProxyMirror(_exporter(), may_join_from_environment())
    _call_when_the_proxy_stops(made.shutdown)
    add_pages(made.companion, token)
    observe_requests()
    made.companion.start()
    return made


def _exporter() -> Exporter:
    if (os.environ.get(EXPORTER_VARIABLE) or "mlflow") == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigurationError(
            "No destination for mirrors is configured: set MLFLOW_TRACKING_URI to the MLflow server's URL, or "
            f"{EXPORTER_VARIABLE}=otlp and OTEL_EXPORTER_OTLP_ENDPOINT to a collector's."
        )
    return shared_exporter()


def _call_when_the_proxy_stops(flush: Callable[[], None]) -> None:
    """Call ``flush`` when the process ends.

    LiteLLM does not notify callbacks of a stop, and uvicorn ends the process with the signal that stopped it, so
    ``atexit`` does not run. ``proxy_shutdown_event`` is the last function that LiteLLM itself calls.
    """
    atexit.register(flush)
    server = sys.modules.get("litellm.proxy.proxy_server")
    stop: Callable[..., Awaitable[None]] | None = getattr(server, "proxy_shutdown_event", None)
    if server is None:
        return
    if stop is None:
        warn_once(
            "litellm_proxy.shutdown",
            "litellm %s has no proxy_shutdown_event(); mirrors of a proxy's last second may be lost when it stops. "
            "Upgrade agent-gateway-client.",
            version_of("litellm"),
        )
        return

    @wraps(stop)
    async def stop_and_flush(*args: Any, **kwargs: Any) -> None:
        try:
            await stop(*args, **kwargs)
        finally:
            await run_blocking(flush)

    server.proxy_shutdown_event = stop_and_flush  # type: ignore[attr-defined]
