"""Keeps a trace's tokens and cost in MLflow complete where its mirrors come after the caller has ended the trace.

While a trace is open, MLflow adds up what its spans report. When the caller ends it, what the caller says of the whole
trace counts; of a caller that reports no tokens of its own, what has been added up so far is taken for that, and what
comes later is no longer added (``log_spans`` of MLflow 3.17's SQL store). The mirror of an agent's last call does.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from agent_gateway_client._log import logger, warn_once

_FINALIZED = "mlflow.trace.infoFinalized"
_USAGE = "mlflow.chat.tokenUsage"

_TRIES = 5
"""How often a trace is looked at again after its totals were set: other processes send mirrors of it, too."""


def complete_totals(store: Any, trace_ids: Iterable[str]) -> None:
    """Set the totals of traces that have ended to the sum of their mirrors, where only these report any.

    Args:
        store: MLflow's tracking store.
        trace_ids: The traces that mirrors have just been added to.
    """
    try:
        waiting = sorted(set(trace_ids))
        for _ in range(_TRIES):
            waiting = [info.trace_id for info in _ended(store, waiting) if _set_totals(store, info)]
    except Exception as error:  # the mirrors themselves are stored
        logger.debug("The totals of a trace could not be completed", exc_info=True)
        warn_once(
            "totals",
            "MLflow did not let the totals of traces be completed (%s); tokens and cost of a trace may lack those of "
            "its last calls. Its spans are complete. Details are logged at level DEBUG.",
            type(error).__name__,
        )


def _ended(store: Any, trace_ids: Sequence[str]) -> list[Any]:
    """Return what the store knows of those traces that have ended; most have not."""
    if not trace_ids:
        return []
    sql = sys.modules.get("mlflow.store.tracking.sqlalchemy_store")
    if sql is None or not isinstance(store, sql.SqlAlchemyStore):
        return [info for info in store.batch_get_trace_infos(trace_ids) if _FINALIZED in info.trace_metadata]
    # The database finds them in a fiftieth of the time. A server's API searches only experiments that it is told.
    wanted = ",".join(f"'{trace_id}'" for trace_id in trace_ids)
    filter_string = f"request_id IN ({wanted}) AND metadata.`{_FINALIZED}` = 'true'"
    found, _ = store.search_traces(filter_string=filter_string, max_results=len(trace_ids))
    return list(found)


def _set_totals(store: Any, info: Any) -> bool:
    """Set a trace's totals, and return whether they were other ones."""
    from mlflow.entities import TraceInfo
    from mlflow.tracing.utils import aggregate_cost_from_spans, aggregate_usage_from_spans

    spans = store.get_trace(info.trace_id, allow_partial=True).data.spans
    if not all(span.name.startswith(("gateway/", "provider/")) for span in spans if span.get_attribute(_USAGE)):
        return False
    totals = {
        "mlflow.trace.tokenUsage": aggregate_usage_from_spans(spans),
        "mlflow.trace.cost": aggregate_cost_from_spans(spans),
    }
    missing = {
        key: json.dumps(total)
        for key, total in totals.items()
        if total and total != json.loads(info.trace_metadata.get(key, "{}"))
    }
    if not missing:
        return False
    # What is not given here stays as it is.
    store.start_trace(
        TraceInfo(
            trace_id=info.trace_id,
            trace_location=info.trace_location,
            request_time=info.request_time,
            execution_duration=info.execution_duration,
            state=info.state,
            client_request_id=info.client_request_id,
            trace_metadata=missing,
        )
    )
    return True
