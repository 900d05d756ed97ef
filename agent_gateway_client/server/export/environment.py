"""Creates the exporter that the environment configures."""

import math
import os
from collections.abc import Callable
from typing import Any

from agent_gateway_client._log import version_of, warn_once
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.server.export.destination import Destination
from agent_gateway_client.server.export.exporter import WAIT_SECONDS, Exporter
from agent_gateway_client.server.export.mlflow import MlflowDestination, Store
from agent_gateway_client.server.export.mlflow_store import SqlStore
from agent_gateway_client.server.export.otlp import OtlpDestination

EXPORTER_VARIABLE = "AGENT_GATEWAY_EXPORTER"
WAIT_VARIABLE = "AGENT_GATEWAY_WAIT_SECONDS"
_REMOVED_VARIABLE = "AGENT_GATEWAY_EXPERIMENT_ID"


def exporter_from_environment(mlflow: Callable[[], Destination] | None = None) -> Exporter:
    """Return the exporter that the environment configures.

    Args:
        mlflow: Creates the destination for ``AGENT_GATEWAY_EXPORTER=mlflow``; by default that of
            ``MLFLOW_TRACKING_URI``.

    Raises:
        ConfigurationError: A variable has an invalid value.
        MissingDependencyError: A package for the configured exporter is not installed.
    """
    check_environment()
    return Exporter(
        destination_from_environment(mlflow or mlflow_from_environment), wait_seconds=wait_seconds_from_environment()
    )


def check_environment() -> None:
    """Check the variables without importing the exporters' packages.

    Raises:
        ConfigurationError: A variable has an invalid value.
    """
    _check_exporter()
    wait_seconds_from_environment()
    if os.environ.get(_REMOVED_VARIABLE):
        warn_once(
            _REMOVED_VARIABLE,
            "%s no longer has an effect; unset it. A mirror is stored in the experiment of the caller's trace, once "
            "MLflow knows that trace: from MLflow 3.18 on a trace cannot move to another experiment.",
            _REMOVED_VARIABLE,
        )


def destination_from_environment(mlflow: Callable[[], Destination]) -> Destination:
    """Return the destination of ``AGENT_GATEWAY_EXPORTER``: ``mlflow`` (the default) or ``otlp``.

    Args:
        mlflow: Creates the destination for ``mlflow``.

    Raises:
        ConfigurationError: This variable, or one of the exporter's own, has an invalid value.
    """
    return {"mlflow": mlflow, "otlp": OtlpDestination}[_check_exporter()]()


def mlflow_from_environment() -> MlflowDestination:
    """Return the MLflow tracking server or database at ``MLFLOW_TRACKING_URI``.

    Raises:
        ConfigurationError: MLflow does not support the URI, or cannot open the store.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracing.client import TracingClient

    try:
        store = TracingClient().store
    except MlflowException as error:
        raise ConfigurationError(
            f"MLFLOW_TRACKING_URI is {os.environ.get('MLFLOW_TRACKING_URI')!r}, which MLflow cannot use "
            f"({type(error).__name__}); give the tracking server's URL, like http://localhost:5000."
        ) from error
    return MlflowDestination(store_of(store))


def store_of(store: Any) -> Store:
    """Return a store for one of MLflow's; for a tracking server, one without MLflow's retries."""
    try:
        from mlflow.store.tracking.rest_store import RestStore

        from agent_gateway_client.server.export.mlflow_server import HttpStore
    except (ImportError, AttributeError):
        warn_once(
            "export.mlflow_server",
            "mlflow %s has changed how it sends requests; mirrors may be lost when the tracking server is away for "
            "long. Upgrade agent-gateway-client.",
            version_of("mlflow-tracing"),
        )
    else:
        if isinstance(store, RestStore) and type(store).log_spans is RestStore.log_spans:
            return HttpStore(store)
    return SqlStore(lambda: store)


def wait_seconds_from_environment() -> float:
    """Return how long a mirror waits for its caller's trace, in seconds (3600 by default).

    Raises:
        ConfigurationError: ``AGENT_GATEWAY_WAIT_SECONDS`` is not a number of seconds.
    """
    text = os.environ.get(WAIT_VARIABLE)
    try:
        seconds = float(text) if text else WAIT_SECONDS
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigurationError(f"{WAIT_VARIABLE} is {text!r}; give a number of seconds, like 3600.")
    return seconds


def _check_exporter() -> str:
    name = os.environ.get(EXPORTER_VARIABLE) or "mlflow"
    if name not in ("mlflow", "otlp"):
        raise ConfigurationError(f"{EXPORTER_VARIABLE} is {name!r}; the exporters are: mlflow, otlp.")
    return name
