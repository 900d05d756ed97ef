"""Checks the configuration before any request is sent."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from agent_gateway_client.doctor.checks import Broken, Settings
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE, Gateways, gateways_for_client


def check_configuration(settings: Settings) -> str:
    """Check the URLs, and the environment variables that configure tracing.

    Returns:
        The finding.

    Raises:
        Broken: A value cannot work.
    """
    try:
        # The same rules as for wrap_openai(), which rejects a model vendor's public API.
        gateways_for_client(settings.gateway, None)
        Gateways([settings.gateway])
    except ConfigurationError as error:
        raise Broken(
            str(error), "Set --gateway to the URL of your gateway, like http://localhost:5000/gateway."
        ) from None
    parts = urlsplit(settings.tracking_uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Broken(
            f"The tracking URI {_shown(settings.tracking_uri)} is not a server's URL; a gateway in another process "
            "cannot write to it.",
            "Start `mlflow server`, and set --tracking-uri or MLFLOW_TRACKING_URI to its URL.",
        )
    otlp = [
        name for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT") if os.environ.get(name)
    ]
    if otlp and _mlflow_sends_otlp():
        raise Broken(
            f"{otlp[0]} is set here, so MLflow sends the agent's spans there instead of to its tracking server.",
            f"Unset {otlp[0]} in the agent's environment, or set MLFLOW_ENABLE_OTLP_EXPORTER=false.",
        )
    known = os.environ.get(GATEWAY_URLS_VARIABLE)
    if known and settings.gateway not in Gateways.from_environment():
        return f"The URLs are well-formed. ({GATEWAY_URLS_VARIABLE} is set and does not include this gateway.)"
    return "The URLs are well-formed, and no variable here sends traces elsewhere."


def _mlflow_sends_otlp() -> bool:
    from mlflow.environment_variables import MLFLOW_ENABLE_OTLP_EXPORTER

    return bool(MLFLOW_ENABLE_OTLP_EXPORTER.get())  # type: ignore[no-untyped-call]


def _shown(uri: str) -> str:
    # A database URI may contain a password.
    return repr(uri) if "@" not in uri else f"'{urlsplit(uri).scheme}://…'"
