"""MLflow as a destination: mirrors are stored in the experiment that the caller's trace is in, and nowhere else.

From 3.18.0 on MLflow refuses spans, and the trace itself, where a trace is already stored in another experiment. A
mirror that came first would cost its caller the whole trace. So each trace is looked up before anything is stored for
it, and one that MLflow does not know yet is left alone.
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
"""Traces whose places are remembered."""

_UNAVAILABLE = {408, 425, 429, 502, 503, 504}
_NOT_LET_IN = {401, 403}


class MlflowPlace(NamedTuple):
    """An experiment, in a workspace where MLflow has workspaces."""

    experiment_id: str
    workspace: str | None = None


class Store(Protocol):
    """What is asked of MLflow's tracking store, in process or over HTTP. Raises what MLflow raises.

    Attributes:
        known_seconds: How long the place of a trace is remembered. A mirror that is sent to a trace that was deleted
            meanwhile would begin the trace anew.
    """

    known_seconds: float

    @property
    def description(self) -> str:
        """Which store it is, without credentials."""

    def in_workspace(self, workspace: str | None) -> AbstractContextManager[object]:
        """Return a context in which the store reads and writes in a workspace."""

    def experiments_of(self, trace_ids: Collection[str]) -> Mapping[str, str]:
        """Return the ids of the experiments that traces are in; unknown traces are left out."""

    def log_spans(self, experiment_id: str, spans: list[Any]) -> object:
        """Store spans of traces that are in an experiment."""

    def totals_of(self, trace_ids: Collection[str], experiment_ids: Collection[str]) -> Mapping[str, TraceTotals]:
        """Return the totals of those traces whose callers have ended them."""

    def set_metadata(self, trace_id: str, metadata: Mapping[str, str]) -> None:
        """Set metadata of an ended trace, and leave the rest of it as it is."""

    def workspaces(self) -> Iterable[str]:
        """Return the names of the workspaces; none where MLflow runs without workspaces."""


class MlflowDestination(Destination):
    """MLflow's tracking store.

    Args:
        store: How it is reached.
        may_write: Tells by a user's name and an experiment's id whether the user's calls may be written there; by
            default all may, also those of nobody known.
    """

    convention = Convention.MLFLOW
    max_batch = 50
    """What MLflow writes at once holds a lock that its other writers wait for: SQLite's only one, or those of the
    traces. Of fifty calls together, each takes hardly longer than of two hundred."""

    def __init__(self, store: Store, may_write: Callable[[str, str], bool] | None = None) -> None:
        self._store = store
        self._may_write = may_write
        self._known: dict[TraceKey, tuple[MlflowPlace, float]] = {}
        self._totals = Totals(store)

    @property
    def description(self) -> str:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self._store.description

    def warm_up(self) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        # A trace that is not there.
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
            # Also where a trace is not, or no longer, where it was found.
            for key in {key for key, (known, _) in self._known.items() if known == place}:
                del self._known[key]
            raise as_export_error(error) from error

    def sent(self, traces: Mapping[TraceKey, Place]) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        places = ((key, place) for key, place in traces.items() if isinstance(place, MlflowPlace))
        self._totals.add({key: place.experiment_id for key, place in places})

    def tend(self, *, everything: bool = False) -> float | None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self._totals.tend(everything=everything)

    def elsewhere(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, str]:
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
            raise as_export_error(error, asked=True) from error
        return {by_id[trace_id]: str(experiment_id) for trace_id, experiment_id in experiments.items()}


def as_export_error(error: Exception, *, asked: bool = False) -> Exception:
    """Return what an exception of MLflow means for the exporter; the exception itself where nothing is known of it.

    Args:
        error: What was raised.
        asked: Whether MLflow was asked where traces are, and not given spans.
    """
    if isinstance(error, Unavailable | Refused):
        return error
    status, retry_after = status_of(error), getattr(error, "retry_after", None)
    if isinstance(error, NotImplementedError) or status == 501:
        answered = f"HTTP {status}: " if status else ""
        return Unavailable(f"{answered}this MLflow store keeps no spans; MLflow needs a database as its backend store")
    if status in _NOT_LET_IN:
        what = "does not let traces be read" if asked else "does not let spans be written to the trace's experiment"
        return Unavailable(f"HTTP {status}: MLflow {what}", retry_after=retry_after, one_place=not asked)
    if status in _UNAVAILABLE:
        return Unavailable(f"HTTP {status}", retry_after=retry_after)
    if status is None and _is_out_of_reach(error):
        return Unavailable(type(error if isinstance(error, OSError) else _cause_of(error)).__name__)
    code = getattr(error, "error_code", None)
    if code in ("INVALID_STATE", "RESOURCE_DOES_NOT_EXIST") and not asked:
        return TraceGone(f"MLflow answered {code}")
    if status is not None and 400 <= status < 500 and status != 404:
        return Refused(f"MLflow answered {code or status}")
    # MLflow fails, of these spans or of all.
    return error if status is None else ExportError(f"HTTP {status}")


def status_of(error: Exception) -> int | None:
    """Return the HTTP status that an exception of MLflow or of ours stands for."""
    status = getattr(error, "status", None)
    if status is None and not _is_out_of_reach(error) and hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
    return status if isinstance(status, int) else None


def _is_out_of_reach(error: Exception) -> bool:
    # MLflow's client raises an exception of its own where it cannot connect.
    return isinstance(error, OSError) or isinstance(_cause_of(error), OSError)


def _cause_of(error: Exception) -> BaseException | None:
    return error.__cause__ or error.__context__
