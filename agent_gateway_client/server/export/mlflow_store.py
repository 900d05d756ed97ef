"""MLflow's SQL store in the same process: inside an MLflow server, or with a database as the tracking URI."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from agent_gateway_client._log import logger, version_of, warn_once
from agent_gateway_client.server.export.destination import Unavailable
from agent_gateway_client.server.export.totals import FINALIZED, TraceTotals, read_totals

_GIVE_WAY_SECONDS = 5.0
"""Maximum time that a write waits for other users of the connection pool."""
_GIVE_WAY_STEP_SECONDS = 0.02


class SqlStore:
    """An in-process store.

    Args:
        get_store: Returns MLflow's tracking store.
    """

    known_seconds = 0.0
    batches_per_look_up = 4
    """A look-up takes a fortieth of a write, whatever the number of its traces."""

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
                experiments: Mapping[str, str] = columns.experiments_of(self._get_store(), trace_ids)
                return experiments
            except Exception as error:
                _raise_if_busy(error)
        # If this fails too, the store has a problem, which is raised.
        infos = self._get_store().batch_get_trace_infos(list(trace_ids))
        self._do_without_columns()
        return {info.trace_id: info.experiment_id for info in infos}

    def log_spans(self, experiment_id: str, spans: list[Any]) -> object:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        store = self._get_store()
        _give_way(store)
        return store.log_spans(experiment_id, spans)

    def totals_of(
        self, trace_ids: Collection[str], experiment_ids: Collection[str], known: Mapping[str, TraceTotals]
    ) -> Mapping[str, TraceTotals]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        columns, store = self._columns(), self._get_store()
        if columns is not None:
            try:
                totals: Mapping[str, TraceTotals] = columns.totals_of(store, trace_ids, known)
                return totals
            except Exception as error:
                _raise_if_busy(error)
        found, _ = store.search_traces(
            locations=list(experiment_ids), filter_string=ended_filter(trace_ids), max_results=len(trace_ids)
        )
        infos = {info.trace_id: info for info in found}
        totals = read_totals(infos, store.batch_get_traces)
        self._do_without_columns()
        return totals

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

    def _columns(self) -> Any:
        """Return the module that reads the store's tables; ``None`` if they have changed."""
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
            "mlflow %s has changed its tables of traces; the slower look-up through its API is used. Upgrade "
            "agent-gateway-client.",
            version_of("mlflow"),
        )


def _give_way(store: Any) -> None:
    """Wait while so many connections are in use that another write could make MLflow's own writes fail.

    ``log_spans()`` and ``start_trace()`` check out a second connection while they hold one. If fifteen of them hold
    all connections of a pool (the default maximum), each waits for a second one until a write times out after 30 s.
    """
    pool: Any = getattr(getattr(store, "engine", None), "pool", None)
    if not hasattr(pool, "checkedout"):
        # SQLAlchemy does not pool connections, or does not count them.
        return
    deadline = time.monotonic() + _GIVE_WAY_SECONDS
    while 0 < pool.size() <= pool.checkedout() and time.monotonic() < deadline:
        time.sleep(_GIVE_WAY_STEP_SECONDS)


def _raise_if_busy(error: Exception) -> None:
    if getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE":
        raise error
    logger.debug("Could not read the columns of traces", exc_info=True)


def ended_filter(trace_ids: Iterable[str]) -> str:
    """Return a search filter for those of the traces that their callers have ended."""
    return f"{ids_filter(trace_ids)} AND metadata.`{FINALIZED}` = 'true'"


def ids_filter(trace_ids: Iterable[str]) -> str:
    """Return a search filter for traces by their ids."""
    wanted = ",".join(f"'{trace_id}'" for trace_id in trace_ids)
    return f"request_id IN ({wanted})"


def with_metadata(info: Any, metadata: Mapping[str, str]) -> Any:
    """Return the argument of ``start_trace`` that sets metadata of a trace and changes nothing else."""
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
    """Return the tracking store of the MLflow server in this process.

    Raises:
        Unavailable: MLflow has moved it.
    """
    try:
        # MLflow's own OTLP endpoint uses it too; the public clients would open a second connection pool.
        from mlflow.server.handlers import _get_tracking_store
    except ImportError as error:
        raise Unavailable(
            f"mlflow {version_of('mlflow')} has moved its server's tracking store; upgrade agent-gateway-client"
        ) from error
    return _get_tracking_store()
