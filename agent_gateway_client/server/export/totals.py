"""Keeps the tokens and the cost of a trace complete in MLflow.

While a trace is open, MLflow adds up what its spans report. When the caller ends it, MLflow takes what the caller says
of the whole trace, and what has been added up so far for what the caller does not say; what comes later is not added
(``log_spans`` of MLflow's SQL store). Mirrors, and the caller's own last spans, do come later. On SQLite before MLflow
3.18 two writes to one trace can lose each other's sums as well.

So each trace that got mirrors is looked at a moment after the last of them, once it has ended, and again some seconds
later: where MLflow's own sum over the stored spans is more than what is recorded, it is recorded.
"""

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.server.export.destination import TraceKey

if TYPE_CHECKING:
    from agent_gateway_client.server.export.mlflow import Store

MAX_TRACES = 10_000
"""Traces that are looked at later; beyond it the oldest are given up."""

FIRST_LOOK_SECONDS = 1.0
SECOND_LOOK_SECONDS = 8.0
"""MLflow's client sends the last of its own spans some 5 s after they have ended."""

OPEN_SECONDS = 3_600.0
"""How long a trace is waited for to end."""

_LAST_PAUSE_SECONDS = 30.0
_PAUSE_SHARE = 0.2
_MOST_AT_ONCE = 20
"""Traces whose spans are read in one go; they hold the caller's payload until they are added up."""

_USAGE = "mlflow.trace.tokenUsage"
_COST = "mlflow.trace.cost"


@dataclass(slots=True)
class _Trace:
    experiment_id: str
    since: float
    due: float
    looks: int = 0


class Totals:
    """The traces whose totals are looked at later. Used in the exporter's thread only.

    Args:
        store: MLflow's tracking store.
    """

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._traces: dict[TraceKey, _Trace] = {}

    def add(self, traces: Mapping[TraceKey, str]) -> None:
        """Note traces that mirrors were stored in just now, with their experiments."""
        now = time.monotonic()
        for key, experiment_id in traces.items():
            self._traces.pop(key, None)
            self._traces[key] = _Trace(experiment_id, now, now + FIRST_LOOK_SECONDS)
        while len(self._traces) > MAX_TRACES:
            del self._traces[next(iter(self._traces))]

    def tend(self, *, everything: bool = False) -> float | None:
        """Look at the traces that are due. Never raises.

        Args:
            everything: Whether all are.

        Returns:
            The seconds until the next one is due; ``None`` where there is none.
        """
        now = time.monotonic()
        due: defaultdict[str | None, list[TraceKey]] = defaultdict(list)
        for key, trace in self._traces.items():
            if everything or trace.due <= now:
                due[key.workspace].append(key)
        for workspace, keys in due.items():
            # The more are due, the longer the calls that wait meanwhile would wait.
            for start in range(0, len(keys), _MOST_AT_ONCE):
                self._look_at(keys[start : start + _MOST_AT_ONCE], workspace, now)
        if not self._traces:
            return None
        return max(0.0, min(trace.due for trace in self._traces.values()) - now)

    def _look_at(self, keys: list[TraceKey], workspace: str | None, now: float) -> None:
        by_id = {mlflow_trace_id(key.trace_id): key for key in keys}
        try:
            with self._store.in_workspace(workspace):
                experiments = {self._traces[key].experiment_id for key in keys}
                infos = {info.trace_id: info for info in self._store.ended(by_id, experiments)}
                changed = self._complete(infos)
        except Exception as error:
            _warn(error)
            infos, changed = {}, set()
        for trace_id, key in by_id.items():
            self._schedule(key, now, is_ended=trace_id in infos, is_changed=trace_id in changed)

    def _complete(self, infos: Mapping[str, Any]) -> set[str]:
        """Record the totals of ended traces that are not recorded. Returns the traces that were changed."""
        changed = set()
        for trace_id, spans in (self._store.spans_of(list(infos)) if infos else {}).items():
            try:
                metadata = missing_totals(infos[trace_id], spans)
                if metadata:
                    self._store.set_metadata(infos[trace_id], metadata)
                    changed.add(trace_id)
            except Exception as error:
                _warn(error)
        return changed

    def _schedule(self, key: TraceKey, now: float, *, is_ended: bool, is_changed: bool) -> None:
        trace = self._traces[key]
        if is_ended:
            trace.looks += 1
            trace.due = now + SECOND_LOOK_SECONDS
            if trace.looks >= 2 and not is_changed:
                del self._traces[key]
        elif now - trace.since > OPEN_SECONDS:
            del self._traces[key]
        else:
            pause = (now - trace.since) * _PAUSE_SHARE
            trace.due = now + min(max(pause, FIRST_LOOK_SECONDS), _LAST_PAUSE_SECONDS)


def missing_totals(info: Any, spans: Sequence[Any]) -> dict[str, str]:
    """Return the totals of a trace that are more than what is recorded, as MLflow's trace metadata.

    Args:
        info: MLflow's ``TraceInfo``.
        spans: All spans of the trace that are stored.
    """
    from mlflow.tracing.utils import aggregate_cost_from_spans, aggregate_usage_from_spans

    sums = {
        _USAGE: (aggregate_usage_from_spans(list(spans)), "total_tokens"),
        _COST: (aggregate_cost_from_spans(list(spans)), "total_cost"),
    }
    missing = {}
    for name, (total, key) in sums.items():
        recorded = json.loads(info.trace_metadata.get(name) or "{}")
        if total and total[key] > recorded.get(key, 0) * (1 + 1e-9):
            missing[name] = json.dumps(total)
    return missing


def _warn(error: Exception) -> None:
    logger.debug("Could not complete the totals of a trace", exc_info=True)
    warn_once(
        "totals",
        "MLflow did not let the totals of traces be completed (%s); tokens and cost of a trace may lack those of "
        "its last calls. Its spans are complete. Details are logged at level DEBUG.",
        type(error).__name__,
    )
