"""MLflow's SQL store in the same process: inside an MLflow server, or where the tracking URI is a database."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

from agent_gateway_client._log import logger, version_of, warn_once
from agent_gateway_client.server.export.destination import Unavailable
from agent_gateway_client.server.export.totals import FINALIZED, TraceTotals, totals_from

_GIVE_WAY_SECONDS = 5.0
_GIVE_WAY_STEP_SECONDS = 0.02
"""How long a write waits at most for others to be done with the store, and how often it looks."""


class SqlStore:
    """A store that is reached in process.

    Args:
        get_store: Returns MLflow's tracking store.
    """

    known_seconds = 0.0
    """To ask costs less than a hundredth of a write."""

    def __init__(self, get_store: Callable[[], Any]) -> None:
        self._get_store = get_store
        self._knows_columns = True

    @property
    def description(self) -> str:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        return "MLflow's store in this process"

    def in_workspace(self, workspace: str | None) -> AbstractContextManager[object]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        if workspace is None:
            return nullcontext()
        from mlflow.utils.workspace_context import ServerWorkspaceContext

        return ServerWorkspaceContext(workspace)

    def experiments_of(self, trace_ids: Collection[str]) -> Mapping[str, str]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        columns = self._columns()
        if columns is not None:
            try:
                return columns.experiments_of(self._get_store(), trace_ids)
            except Exception as error:
                _raise_if_busy(error)
        # What fails here too is the store's trouble, and raised.
        infos = self._get_store().batch_get_trace_infos(list(trace_ids))
        self._do_without_columns()
        return {info.trace_id: info.experiment_id for info in infos}

    def log_spans(self, experiment_id: str, spans: list[Any]) -> object:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        store = self._get_store()
        _give_way(store)
        return store.log_spans(experiment_id, spans)

    def totals_of(self, trace_ids: Collection[str], experiment_ids: Collection[str]) -> Mapping[str, TraceTotals]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        columns, store = self._columns(), self._get_store()
        if columns is not None:
            try:
                return columns.totals_of(store, trace_ids)
            except Exception as error:
                _raise_if_busy(error)
        found, _ = store.search_traces(
            locations=list(experiment_ids), filter_string=ended_filter(trace_ids), max_results=len(trace_ids)
        )
        infos = {info.trace_id: info for info in found}
        traces = store.batch_get_traces(list(infos)) if infos else []
        self._do_without_columns()
        return {trace.info.trace_id: totals_from(infos[trace.info.trace_id], trace.data.spans) for trace in traces}

    def set_metadata(self, trace_id: str, metadata: Mapping[str, str]) -> None:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        store = self._get_store()
        _give_way(store)
        for info in store.batch_get_trace_infos([trace_id]):
            store.start_trace(with_metadata(info, metadata))

    def workspaces(self) -> Iterable[str]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES

        if not MLFLOW_ENABLE_WORKSPACES.get():  # type: ignore[no-untyped-call]
            return []
        from mlflow.server.workspace_helpers import _get_workspace_store

        return [workspace.name for workspace in _get_workspace_store().list_workspaces()]

    def _columns(self) -> ModuleType | None:
        """Return what reads the store's tables; ``None`` where they are not as this version knows them."""
        if self._knows_columns:
            try:
                from agent_gateway_client.server.export import mlflow_columns
            except ImportError:
                self._do_without_columns()
            else:
                return mlflow_columns
        return None

    def _do_without_columns(self) -> None:
        self._knows_columns = False
        warn_once(
            "export.columns",
            "mlflow %s does not let traces be looked up in the way that this version of agent-gateway-client knows; "
            "each mirror costs more time. Upgrade agent-gateway-client.",
            version_of("mlflow"),
        )


def _give_way(store: Any) -> None:
    """Wait while so many connections are in use that one more writer could make others fail.

    MLflow's ``log_spans()`` and ``start_trace()`` take a second connection while they hold a first. When all of a
    pool's are first ones, none of these writes goes on until one of them fails, 30 s later.
    """
    pool: Any = getattr(getattr(store, "engine", None), "pool", None)
    if not hasattr(pool, "checkedout"):
        # Connections are not pooled, or not counted.
        return
    deadline = time.monotonic() + _GIVE_WAY_SECONDS
    while 0 < pool.size() <= pool.checkedout() and time.monotonic() < deadline:
        time.sleep(_GIVE_WAY_STEP_SECONDS)


def _raise_if_busy(error: Exception) -> None:
    if getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE":
        raise error
    logger.debug("Could not read the columns of traces", exc_info=True)


def ended_filter(trace_ids: Iterable[str]) -> str:
    """Return the filter of a search for those of the traces that their callers have ended."""
    return f"{ids_filter(trace_ids)} AND metadata.`{FINALIZED}` = 'true'"


def ids_filter(trace_ids: Iterable[str]) -> str:
    """Return the filter of a search for traces by their ids."""
    wanted = ",".join(f"'{trace_id}'" for trace_id in trace_ids)
    return f"request_id IN ({wanted})"


def with_metadata(info: Any, metadata: Mapping[str, str]) -> Any:
    """Return what ``start_trace`` has to be given to set metadata of a trace and to leave all else as it is."""
    from mlflow.entities import TraceInfo

    return TraceInfo(
        trace_id=info.trace_id,
        trace_location=info.trace_location,
        request_time=info.request_time,
        execution_duration=info.execution_duration,
        state=info.state,
        client_request_id=info.client_request_id,
        trace_metadata=dict(metadata),
    )


def server_store() -> Any:
    """Return the tracking store of the MLflow server that this runs in.

    Raises:
        Unavailable: MLflow has moved it.
    """
    try:
        # What MLflow's own OTLP endpoint uses; the public clients would open a second connection pool.
        from mlflow.server.handlers import _get_tracking_store
    except ImportError as error:
        raise Unavailable(
            f"mlflow {version_of('mlflow')} has moved its server's tracking store; upgrade agent-gateway-client"
        ) from error
    return _get_tracking_store()
