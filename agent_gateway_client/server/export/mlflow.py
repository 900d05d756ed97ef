"""MLflow as a destination: stores mirrors in the experiment of the caller's trace, and nowhere else.

From 3.18.0 on MLflow refuses spans, and the trace itself, if the trace is already stored in another experiment. A
mirror that arrived first would cost the caller its trace. So each trace is looked up first, and nothing is stored for a
trace that MLflow does not know yet.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from opentelemetry.sdk.trace import ReadableSpan

from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.server.export.destination import (
    ANYWHERE,
    Destination,
    ExportError,
    Place,
    Refused,
    TraceGone,
    TraceKey,
    Unavailable,
)
from agent_gateway_client.server.export.totals import Totals, TraceTotals
from agent_gateway_client.server.mirror import Convention

MAX_KNOWN = 20_000
"""Traces whose places are cached."""

_UNAVAILABLE = {408, 425, 429, 502, 503, 504}
_NOT_LET_IN = {401, 403}


class MlflowPlace(NamedTuple):
    """An experiment, and its workspace if MLflow has workspaces."""

    experiment_id: str
    workspace: str | None = None


class Store(Protocol):
    """MLflow's tracking store, in process or over HTTP. The methods raise MLflow's exceptions.

    Attributes:
        known_seconds: How long the place of a trace is cached. A mirror for a trace that was deleted in that time
            creates the trace again.
        batches_per_look_up: How many batches of calls share a look-up of their traces.
    """

    known_seconds: float
    batches_per_look_up: int

    @property
    def description(self) -> str:
        """The kind and address of the store, without credentials."""

    def in_workspace(self, workspace: str | None) -> AbstractContextManager[object]:
        """Return a context manager in which the store reads and writes in a workspace."""

    def experiments_of(self, trace_ids: Collection[str]) -> Mapping[str, str]:
        """Return the experiment ids of traces; unknown traces are left out."""

    def log_spans(self, experiment_id: str, spans: list[Any]) -> object:
        """Store spans of traces in an experiment."""

    def totals_of(
        self, trace_ids: Collection[str], experiment_ids: Collection[str], known: Mapping[str, TraceTotals]
    ) -> Mapping[str, TraceTotals]:
        """Return the totals of the traces that their callers have ended.

        Args:
            trace_ids: The traces.
            experiment_ids: Their experiments.
            known: What the last look found. The spans of a trace that has not changed since need not be read again.
        """

    def set_metadata(self, trace_id: str, metadata: Mapping[str, str]) -> None:
        """Set metadata of an ended trace and leave the rest unchanged."""

    def workspaces(self) -> Iterable[str]:
        """Return the names of the workspaces; empty if MLflow runs without workspaces."""


class MlflowDestination(Destination):
    """MLflow's tracking store.

    Args:
        store: The store.
        may_write: Returns whether a user, by name, may write to an experiment, by id. By default all calls may be
            written, also those without a user.
    """

    convention = Convention.MLFLOW
    max_batch = 50
    """A write locks SQLite's database, or the rows of its traces, and MLflow's other writes wait for it. A larger batch
    saves hardly any time per call."""

    def __init__(self, store: Store, may_write: Callable[[str, str], bool] | None = None) -> None:
        self._store = store
        self._may_write = may_write
        self._known: dict[TraceKey, tuple[MlflowPlace, float]] = {}
        self._totals = Totals(store)

    @property
    def max_located(self) -> int:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self.max_batch * self._store.batches_per_look_up

    @property
    def description(self) -> str:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self._store.description

    def warm_up(self) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        # Look up a trace that does not exist.
        self.locate([TraceKey(0, next(iter(self._store.workspaces()), None))])

    def locate(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, Place]:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        now = time.monotonic()
        found: dict[TraceKey, Place] = {}
        unknown: defaultdict[str | None, list[TraceKey]] = defaultdict(list)
        for key in traces:
            place, until = self._known.get(key, (None, 0.0))
            if place is not None and now < until:
                found[key] = place
            else:
                unknown[key.workspace].append(key)
        for workspace, keys in unknown.items():
            for key, experiment_id in self._experiments_of(keys, workspace).items():
                place = MlflowPlace(experiment_id, workspace)
                found[key] = place
                self._known.pop(key, None)
                self._known[key] = place, now + self._store.known_seconds
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        return found

    def admits(self, user: str | None, place: Place) -> bool:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        if self._may_write is None:
            return True
        assert isinstance(place, MlflowPlace)
        with self._store.in_workspace(place.workspace):
            return user is not None and self._may_write(user, place.experiment_id)

    def send(self, spans: Sequence[ReadableSpan], place: Place = ANYWHERE) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        from mlflow.entities import Span

        assert isinstance(place, MlflowPlace)
        try:
            with self._store.in_workspace(place.workspace):
                self._store.log_spans(place.experiment_id, [Span(span) for span in spans])
        except Exception as error:
            # The trace may have moved or been deleted.
            for key in {key for key, (known, _) in self._known.items() if known == place}:
                del self._known[key]
            raise as_export_error(error) from error

    def sent(self, traces: Mapping[TraceKey, Place]) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        places = ((key, place) for key, place in traces.items() if isinstance(place, MlflowPlace))
        self._totals.add({key: place.experiment_id for key, place in places})

    def maintain(self, *, everything: bool = False) -> float | None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self._totals.maintain(everything=everything)

    def find_in_other_workspaces(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, str]:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        found: dict[TraceKey, str] = {}
        for workspace in self._store.workspaces():
            missing = [key for key in traces if key not in found and key.workspace != workspace]
            found |= dict.fromkeys(self._experiments_of(missing, workspace), workspace)
        return found

    def after_fork(self) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        self._known = {}
        self._totals = Totals(self._store)

    def _experiments_of(self, keys: Sequence[TraceKey], workspace: str | None) -> dict[TraceKey, str]:
        by_id = {mlflow_trace_id(key.trace_id): key for key in keys}
        try:
            with self._store.in_workspace(workspace):
                experiments = self._store.experiments_of(list(by_id)) if by_id else {}
        except Exception as error:
            raise as_export_error(error, is_look_up=True) from error
        return {by_id[trace_id]: str(experiment_id) for trace_id, experiment_id in experiments.items()}


def as_export_error(error: Exception, *, is_look_up: bool = False) -> Exception:
    """Return the exporter's error for an exception of MLflow, or the exception itself if its meaning is unknown.

    Args:
        error: The exception.
        is_look_up: Whether traces were looked up, as opposed to spans written.
    """
    if isinstance(error, Unavailable | Refused):
        return error
    status, retry_after = status_of(error), getattr(error, "retry_after", None)
    if isinstance(error, NotImplementedError) or status == 501:
        answered = f"HTTP {status}: " if status else ""
        return Unavailable(f"{answered}this MLflow store keeps no spans; use a database as MLflow's backend store")
    if status in _NOT_LET_IN:
        what = (
            "does not let traces be read" if is_look_up else "does not let spans be written to the trace's experiment"
        )
        return Unavailable(f"HTTP {status}: MLflow {what}", retry_after=retry_after, one_place=not is_look_up)
    if status in _UNAVAILABLE:
        return Unavailable(f"HTTP {status}", retry_after=retry_after)
    if status is None and _is_out_of_reach(error):
        return Unavailable(type(error if isinstance(error, OSError) else _cause_of(error)).__name__)
    code = getattr(error, "error_code", None)
    if code in ("INVALID_STATE", "RESOURCE_DOES_NOT_EXIST") and not is_look_up:
        return TraceGone(f"MLflow answered {code}")
    if status is not None and 400 <= status < 500 and status != 404:
        return Refused(f"MLflow answered {code or status}")
    # MLflow fails, perhaps only for these spans.
    return error if status is None else ExportError(f"HTTP {status}")


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an exception of MLflow's or ours."""
    status = getattr(error, "status", None)
    if status is None and not _is_out_of_reach(error) and hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
    return status if isinstance(status, int) else None


def _is_out_of_reach(error: Exception) -> bool:
    # MLflow's client wraps connection errors in its own exception.
    return isinstance(error, OSError) or isinstance(_cause_of(error), OSError)


def _cause_of(error: Exception) -> BaseException | None:
    return error.__cause__ or error.__context__
