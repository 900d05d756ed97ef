"""The exporter that the environment asks for."""

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
    """Return an exporter as the environment says.

    Args:
        mlflow: Makes the destination for ``AGENT_GATEWAY_EXPORTER=mlflow``; by default ``MLFLOW_TRACKING_URI`` says it.

    Raises:
        ConfigurationError: A variable has a value that cannot work.
        MissingDependencyError: What a variable asks for is not installed.
    """
    check_environment()
    return Exporter(
        destination_from_environment(mlflow or mlflow_from_environment), wait_seconds=wait_seconds_from_environment()
    )


def check_environment() -> None:
    """Check the variables without importing what they ask for.

    Raises:
        ConfigurationError: A variable has a value that cannot work.
    """
    _check_exporter()
    wait_seconds_from_environment()
    if os.environ.get(_REMOVED_VARIABLE):
        warn_once(
            _REMOVED_VARIABLE,
            "%s has no effect any more; unset it. A mirror is stored in the experiment of the caller's trace, and not "
            "before MLflow knows that trace: from MLflow 3.18 on a trace cannot move to another experiment.",
            _REMOVED_VARIABLE,
        )


def destination_from_environment(mlflow: Callable[[], Destination]) -> Destination:
    """Return the destination that ``AGENT_GATEWAY_EXPORTER`` names: ``mlflow`` (the default) or ``otlp``.

    Args:
        mlflow: Makes the destination for ``mlflow``.

    Raises:
        ConfigurationError: The variable has another value, or one that belongs to it is wrong.
    """
    return {"mlflow": mlflow, "otlp": OtlpDestination}[_check_exporter()]()


def mlflow_from_environment() -> MlflowDestination:
    """Return the MLflow tracking server or database that ``MLFLOW_TRACKING_URI`` names.

    Raises:
        ConfigurationError: MLflow knows no such kind of store, or cannot open it.
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
    """Return how an MLflow tracking store is reached: past MLflow's retries where it is a server."""
    try:
        from mlflow.store.tracking.rest_store import RestStore

        from agent_gateway_client.server.export.mlflow_server import HttpStore
    except (ImportError, AttributeError):
        warn_once(
            "export.mlflow_server",
            "mlflow %s sends requests in a way that this version of agent-gateway-client does not know; mirrors may be "
            "lost when the tracking server is away for long. Upgrade agent-gateway-client.",
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
