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
from typing import TYPE_CHECKING, Any, NamedTuple

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

FINALIZED = "mlflow.trace.infoFinalized"
USAGE = "mlflow.trace.tokenUsage"
COST = "mlflow.trace.cost"
"""Trace metadata: that the caller has ended the trace, and the totals of its spans."""

_TOTAL = {USAGE: "total_tokens", COST: "total_cost"}


class TraceTotals(NamedTuple):
    """The totals of an ended trace, by the name of their metadata: tokens, and cost in USD.

    Attributes:
        recorded: What is recorded.
        sums: What MLflow's own sum over the stored spans gives; ``None`` where no span reports anything.
    """

    recorded: Mapping[str, float]
    sums: Mapping[str, Mapping[str, float] | None]

    def missing(self) -> dict[str, str]:
        """Return the sums that are more than what is recorded, as MLflow's trace metadata."""
        return {
            name: json.dumps(total)
            for name, total in self.sums.items()
            if total and total[_TOTAL[name]] > self.recorded.get(name, 0) * (1 + 1e-9)
        }


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
                ended = self._store.totals_of(by_id, experiments)
                changed = self._complete(ended)
        except Exception as error:
            _warn(error)
            ended, changed = {}, set()
        for trace_id, key in by_id.items():
            self._schedule(key, now, is_ended=trace_id in ended, is_changed=trace_id in changed)

    def _complete(self, ended: Mapping[str, TraceTotals]) -> set[str]:
        """Record the totals of ended traces that are not recorded. Returns the traces that were changed."""
        changed = set()
        for trace_id, totals in ended.items():
            try:
                metadata = totals.missing()
                if metadata:
                    self._store.set_metadata(trace_id, metadata)
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


def totals_from(info: Any, spans: Sequence[Any]) -> TraceTotals:
    """Return the totals of an ended trace.

    Args:
        info: MLflow's ``TraceInfo``.
        spans: All spans of the trace that are stored.
    """
    from mlflow.tracing.utils import aggregate_cost_from_spans, aggregate_usage_from_spans

    recorded = {name: json.loads(info.trace_metadata.get(name) or "{}").get(key, 0.0) for name, key in _TOTAL.items()}
    sums = {USAGE: aggregate_usage_from_spans(list(spans)), COST: aggregate_cost_from_spans(list(spans))}
    return TraceTotals(recorded, sums)


def _warn(error: Exception) -> None:
    logger.debug("Could not complete the totals of a trace", exc_info=True)
    warn_once(
        "totals",
        "MLflow did not let the totals of traces be completed (%s); tokens and cost of a trace may lack those of "
        "its last calls. Its spans are complete. Details are logged at level DEBUG.",
        type(error).__name__,
    )
