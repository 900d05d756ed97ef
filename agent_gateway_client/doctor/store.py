"""The MLflow server that must receive both the agent's spans and the mirrors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import httpx
import mlflow
from mlflow.entities import Span, Trace
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from agent_gateway_client.doctor.checks import Broken, Settings, excerpt
from agent_gateway_client.traces import joined

LOWEST_VERSION = (3, 15)
"""The lowest supported version of the MLflow server."""

_POLL_S = 0.2
_LOG_IN = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for the agent."


class Store:
    """The tracking server.

    Args:
        settings: The doctor's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._uri = settings.tracking_uri.rstrip("/")
        self.experiment_id = ""

    def open(self) -> str:
        """Connect to the server, and select or create the probe's experiment. This process then traces into it.

        Returns:
            The finding.

        Raises:
            Broken: The server cannot be reached, is too old, requires credentials, or denies access to the experiment.
        """
        version = self._version()
        mlflow.set_tracking_uri(self._settings.tracking_uri)
        name = self._settings.experiment
        try:
            self.experiment_id = str(mlflow.set_experiment(name).experiment_id)
        except MlflowException as error:
            status = error.get_http_status_code()  # type: ignore[no-untyped-call]
            if status == 401:
                raise Broken(f"{self._uri} requires credentials (401).", _LOG_IN) from error
            raise Broken(
                f"The experiment {name!r} cannot be used: {error.error_code}.",
                "Set --experiment to one that is not deleted and that you may write to.",
            ) from error
        return f"MLflow {version} answers at {self._uri}; the probe is in the experiment {name!r}."

    @property
    def workspace(self) -> str | None:
        """The workspace that this process traces into; ``None`` for MLflow's default workspace."""
        name = os.environ.get("MLFLOW_WORKSPACE", "").strip()
        return None if name in ("", "default") else name

    def wait_for(self, trace_id: str, is_there: Callable[[Trace], bool], patience_s: float) -> Trace | None:
        """Poll a trace until ``is_there`` returns true or patience ends.

        Returns:
            The trace as it was read last; ``None`` if it does not exist.
        """
        deadline = time.monotonic() + patience_s
        client = TracingClient(self._settings.tracking_uri)
        trace = None
        while True:
            try:
                trace = client.get_trace(trace_id)
                if is_there(trace):
                    return trace
            except MlflowException:
                pass
            if time.monotonic() > deadline:
                return trace
            time.sleep(_POLL_S)

    def _version(self) -> str:
        try:
            response = httpx.get(f"{self._uri}/version", timeout=20)
        except httpx.HTTPError as error:
            raise Broken(
                f"{self._uri} cannot be reached ({type(error).__name__}: {excerpt(str(error))}).",
                "Start `mlflow server`, or set --tracking-uri or MLFLOW_TRACKING_URI to its URL.",
            ) from error
        if response.status_code in (401, 403):
            raise Broken(f"{self._uri} requires credentials ({response.status_code}).", _LOG_IN)
        version = response.text.strip()
        numbers = version.split(".")[:2]
        if not response.is_success or len(numbers) < 2 or not all(number.isdecimal() for number in numbers):
            raise Broken(
                f"{self._uri} answers, but is not MLflow ({response.status_code} to /version).",
                "Set --tracking-uri to the URL of an MLflow server, including its prefix, if it has one.",
            )
        if tuple(map(int, numbers)) < LOWEST_VERSION:
            lowest = ".".join(map(str, LOWEST_VERSION))
            raise Broken(
                f"{self._uri} is MLflow {version}, which is too old to store single spans.",
                f"Upgrade the server to MLflow {lowest} or newer.",
            )
        return version


def mirrors_in(trace: Trace | None) -> list[Span]:
    """Return the gateway spans of the mirrors in a trace."""
    return joined.mirrors_in(trace.data.spans) if trace else []
