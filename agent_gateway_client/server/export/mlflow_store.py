"""MLflow's SQL store in the same process: inside an MLflow server, or with a database as the tracking URI."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from agent_gateway_client._log import logger, version_of, warn_once
from agent_gateway_client.server.export.destination import Unavailable

FINALIZED = "mlflow.trace.infoFinalized"
"""Trace metadata that MLflow sets when the caller has ended the trace."""


class SqlStore:
    """An in-process store.

    Args:
        get_store: Returns MLflow's tracking store.
    """

    known_seconds = 0.0
    """A look-up costs less than a hundredth of a write."""

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
        store = self._get_store()
        if self._knows_columns:
            try:
                return _experiments_by_columns(store, trace_ids)
            except Exception as error:
                if getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE":
                    raise
                logger.debug("Could not look traces up by their columns", exc_info=True)
        # If this fails too, the store has a problem, which is raised.
        found = {info.trace_id: info.experiment_id for info in store.batch_get_trace_infos(list(trace_ids))}
        self._knows_columns = False
        warn_once(
            "export.columns",
            "mlflow %s has changed its table of traces; the slower look-up through its API is used. Upgrade "
            "agent-gateway-client.",
            version_of("mlflow"),
        )
        return found

    def log_spans(self, experiment_id: str, spans: list[Any]) -> object:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        return self._get_store().log_spans(experiment_id, spans)

    def ended(self, trace_ids: Collection[str], experiment_ids: Collection[str]) -> Sequence[Any]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        found, _ = self._get_store().search_traces(
            locations=list(experiment_ids), filter_string=ended_filter(trace_ids), max_results=len(trace_ids)
        )
        return list(found)

    def spans_of(self, trace_ids: Collection[str]) -> Mapping[str, Sequence[Any]]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        traces = self._get_store().batch_get_traces(list(trace_ids))
        return {trace.info.trace_id: trace.data.spans for trace in traces}

    def set_metadata(self, info: Any, metadata: Mapping[str, str]) -> None:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        self._get_store().start_trace(with_metadata(info, metadata))

    def workspaces(self) -> Iterable[str]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES

        if not MLFLOW_ENABLE_WORKSPACES.get():  # type: ignore[no-untyped-call]
            return []
        from mlflow.server.workspace_helpers import _get_workspace_store

        return [workspace.name for workspace in _get_workspace_store().list_workspaces()]


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


def _experiments_by_columns(store: Any, trace_ids: Collection[str]) -> dict[str, str]:
    """Read two columns; a hundred times faster than ``batch_get_trace_infos()``."""
    from mlflow.store.tracking.dbmodels import models

    table: Any = models.SqlTraceInfo
    found: dict[str, str] = {}
    with store.ManagedSessionMaker() as session:
        query = store._trace_query(session).with_entities(table.request_id, table.experiment_id)
        wanted = query.filter(table.request_id.in_(trace_ids))
        found.update((trace_id, str(experiment_id)) for trace_id, experiment_id in wanted)
    return found


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
