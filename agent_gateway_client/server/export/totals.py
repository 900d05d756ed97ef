"""Keeps the tokens and the cost of a trace complete in MLflow.

While a trace is open, MLflow adds up what its spans report. When the caller ends the trace, MLflow records the caller's
totals, or its own sums so far if the caller sends none; later spans are not added (``log_spans`` of MLflow's SQL
store). Mirrors and the caller's last spans do come later. On SQLite before MLflow 3.18, concurrent writes to a trace
can also lose sums.

So each trace with mirrors is checked shortly after its last mirror, once it has ended, and again some seconds later. If
MLflow's own sum over the stored spans is greater than the recorded total, the sum is recorded.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.server.export.destination import TraceKey

if TYPE_CHECKING:
    from agent_gateway_client.server.export.mlflow import Store

MAX_TRACES = 10_000
"""Maximum number of traces to check; the oldest are dropped."""

FIRST_LOOK_SECONDS = 2.0
SECOND_LOOK_SECONDS = 8.0
"""MLflow's client sends its last spans some 5 s after they end."""

OPEN_SECONDS = 3_600.0
"""How long to wait for a trace to end."""

_LAST_PAUSE_SECONDS = 30.0
_PAUSE_SHARE = 0.2
_TOGETHER_SECONDS = 1.5
"""Traces that are due this soon are checked with those that are due now: a query costs as much as ten traces."""
MAX_READ_TOGETHER = 20
"""Traces whose spans are in memory at once; they contain the caller's payload."""
_MOST_AT_ONCE = 500
"""Traces that are checked together; databases limit the length of a query."""

FINALIZED = "mlflow.trace.infoFinalized"
USAGE = "mlflow.trace.tokenUsage"
COST = "mlflow.trace.cost"
"""Keys of MLflow trace metadata: whether the caller has ended the trace, and the totals of its spans."""

_TOTAL = {USAGE: "total_tokens", COST: "total_cost"}


class TraceTotals(NamedTuple):
    """Totals of an ended trace, by the metadata key ``USAGE`` (tokens) or ``COST`` (USD).

    Attributes:
        recorded: The totals that MLflow has recorded.
        missing: MLflow's aggregates of the stored spans, where they exceed the recorded totals.
        spans: Number of stored spans.
    """

    recorded: Mapping[str, float]
    missing: Mapping[str, Mapping[str, float]]
    spans: int


def exceeds(total: float, recorded: float) -> bool:
    """Return whether a total is greater than the recorded one by more than the rounding of a sum."""
    return total > recorded * (1 + 1e-9)


@dataclass(slots=True)
class _Trace:
    experiment_id: str
    since: float
    due: float
    looks: int = 0
    totals: TraceTotals | None = None


class Totals:
    """The traces whose totals are to be checked. Used in the exporter's thread only.

    Args:
        store: MLflow's tracking store.
    """

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._traces: dict[TraceKey, _Trace] = {}

    def add(self, traces: Mapping[TraceKey, str]) -> None:
        """Schedule checks of traces that just got mirrors.

        Args:
            traces: The ids of the traces' experiments.
        """
        now = time.monotonic()
        for key, experiment_id in traces.items():
            self._traces.pop(key, None)
            self._traces[key] = _Trace(experiment_id, now, now + FIRST_LOOK_SECONDS)
        while len(self._traces) > MAX_TRACES:
            del self._traces[next(iter(self._traces))]

    def maintain(self, *, everything: bool = False) -> float | None:
        """Check the traces that are due. Never raises.

        Args:
            everything: Whether to check all traces.

        Returns:
            Seconds until the next check is due; ``None`` if there is none.
        """
        now = time.monotonic()
        due: defaultdict[str | None, list[TraceKey]] = defaultdict(list)
        if everything or self._next_due() <= now:
            for key, trace in self._traces.items():
                if everything or trace.due <= now + _TOGETHER_SECONDS:
                    due[key.workspace].append(key)
        for workspace, keys in due.items():
            for start in range(0, len(keys), _MOST_AT_ONCE):
                self._look_at(keys[start : start + _MOST_AT_ONCE], workspace, now)
        return max(0.0, self._next_due() - now) if self._traces else None

    def _next_due(self) -> float:
        return min((trace.due for trace in self._traces.values()), default=math.inf)

    def _look_at(self, keys: list[TraceKey], workspace: str | None, now: float) -> None:
        by_id = {mlflow_trace_id(key.trace_id): key for key in keys}
        try:
            with self._store.in_workspace(workspace):
                experiments = {self._traces[key].experiment_id for key in keys}
                known = {trace_id: totals for trace_id, key in by_id.items() if (totals := self._traces[key].totals)}
                ended = self._store.totals_of(by_id, experiments, known)
                changed = self._complete(ended)
        except Exception as error:
            _warn(error)
            ended, changed = {}, set()
        for trace_id, key in by_id.items():
            self._schedule(key, now, ended.get(trace_id), is_changed=trace_id in changed)

    def _complete(self, ended: Mapping[str, TraceTotals]) -> set[str]:
        """Record missing totals of ended traces. Returns the ids of the changed traces."""
        changed = set()
        for trace_id, totals in ended.items():
            try:
                if totals.missing:
                    metadata = {name: json.dumps(total) for name, total in totals.missing.items()}
                    self._store.set_metadata(trace_id, metadata)
                    changed.add(trace_id)
            except Exception as error:
                _warn(error)
        return changed

    def _schedule(self, key: TraceKey, now: float, totals: TraceTotals | None, *, is_changed: bool) -> None:
        trace = self._traces[key]
        if totals is not None:
            trace.totals = totals
            trace.looks += 1
            trace.due = now + SECOND_LOOK_SECONDS
            if trace.looks >= 2 and not is_changed:
                del self._traces[key]
        elif now - trace.since > OPEN_SECONDS:
            del self._traces[key]
        else:
            pause = (now - trace.since) * _PAUSE_SHARE
            trace.due = now + min(max(pause, FIRST_LOOK_SECONDS), _LAST_PAUSE_SECONDS)


def read_totals(infos: Mapping[str, Any], traces: Callable[[list[str]], Iterable[Any]]) -> dict[str, TraceTotals]:
    """Return the totals of ended traces by MLflow's public methods.

    Args:
        infos: MLflow's ``TraceInfo`` of each trace.
        traces: Returns traces with all their spans.
    """
    ids = list(infos)
    found = {}
    for start in range(0, len(ids), MAX_READ_TOGETHER):
        for trace in traces(ids[start : start + MAX_READ_TOGETHER]):
            trace_id, spans = trace.info.trace_id, trace.data.spans
            try:
                found[trace_id] = _totals_from(infos[trace_id], spans)
            except Exception as error:
                found[trace_id] = no_totals(len(spans), error)
    return found


def no_totals(spans: int, error: Exception) -> TraceTotals:
    """Warn that MLflow cannot add up what the spans of a trace report, and return totals with nothing missing."""
    _warn(error)
    return TraceTotals({}, {}, spans)


def _totals_from(info: Any, spans: Sequence[Any]) -> TraceTotals:
    from mlflow.tracing.utils import aggregate_cost_from_spans, aggregate_usage_from_spans

    recorded = {name: json.loads(info.trace_metadata.get(name) or "{}").get(key, 0.0) for name, key in _TOTAL.items()}
    sums = {USAGE: aggregate_usage_from_spans(list(spans)), COST: aggregate_cost_from_spans(list(spans))}
    missing = {name: total for name, total in sums.items() if total and exceeds(total[_TOTAL[name]], recorded[name])}
    return TraceTotals(recorded, missing, len(spans))


def _warn(error: Exception) -> None:
    logger.debug("Could not complete the totals of a trace", exc_info=True)
    warn_once(
        "totals",
        "Could not complete the totals of a trace in MLflow (%s); its tokens and cost may lack those of its last "
        "calls. Its spans are complete. Details are logged at level DEBUG.",
        type(error).__name__,
    )
