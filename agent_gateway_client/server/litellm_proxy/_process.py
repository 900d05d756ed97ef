"""The callback of a proxy's process: made as its environment says, and flushed when the proxy stops."""

import atexit
import os
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from agent_gateway_client._log import version_of, warn_once
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.server.asgi.lifespan import run_blocking
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.export.environment import EXPORTER_VARIABLE
from agent_gateway_client.server.joining import may_join_from_environment
from agent_gateway_client.server.litellm_proxy._callback import LiteLLMProxyMirror
from agent_gateway_client.server.litellm_proxy._pages import add_pages
from agent_gateway_client.server.observed.pages import token_from_environment
from agent_gateway_client.server.shared import shared_exporter


def mirror_from_environment() -> LiteLLMProxyMirror:
    """Make the callback; what it holds is sent before the process ends.

    Raises:
        ConfigurationError: A variable of the environment has a value that cannot work.
    """
    token = token_from_environment()
    made = LiteLLMProxyMirror(_exporter(), may_join_from_environment())
    _call_when_the_proxy_stops(made.shutdown)
    add_pages(made.companion, token)
    made.companion.start()
    return made


def _exporter() -> Exporter:
    if (os.environ.get(EXPORTER_VARIABLE) or "mlflow") == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigurationError(
            "It is not known where to send mirrors to: set MLFLOW_TRACKING_URI to the MLflow server's URL, or "
            f"{EXPORTER_VARIABLE}=otlp and OTEL_EXPORTER_OTLP_ENDPOINT to a collector's."
        )
    return shared_exporter()


def _call_when_the_proxy_stops(flush: Callable[[], None]) -> None:
    """Have ``flush`` called when the process ends.

    LiteLLM tells no callback that the proxy stops, and uvicorn ends the process by the signal that stopped it, so what
    is registered with ``atexit`` is not called either. ``proxy_shutdown_event`` is the last that LiteLLM itself does.
    """
    atexit.register(flush)
    server = sys.modules.get("litellm.proxy.proxy_server")
    stop: Callable[..., Awaitable[None]] | None = getattr(server, "proxy_shutdown_event", None)
    if server is None:
        return
    if stop is None:
        warn_once(
            "litellm_proxy.shutdown",
            "litellm %s stops in a way that this version of agent-gateway-client does not know; mirrors of a proxy's "
            "last second may be lost when it is stopped. Upgrade agent-gateway-client.",
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
