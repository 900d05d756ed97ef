"""Reads traces from MLflow, with the gateway's own traces that their mirrors link to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from mlflow.entities import Trace
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from agent_gateway_client._install import install_command
from agent_gateway_client.errors import MissingDependencyError, NotFoundError
from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.traces.facts import SpanFacts, facts_of

_TRACE_ID = re.compile(r"(?:tr-)?([0-9a-f]{32})\Z")
_LATEST = 100
_EXPERIMENTS = 1000
_NAMED = 10
_GATEWAYS_OWN = "mlflow.gateway."
"""Prefix of the metadata that MLflow's gateway sets in its own traces."""


class JoinedTrace(NamedTuple):
    """A trace and its linked traces.

    Attributes:
        trace: The trace.
        spans: The facts of its spans.
        linked: By trace id, the spans of the gateway's own traces; unreadable ones are missing.
        tracking_uri: Where it was read.
    """

    trace: Trace
    spans: list[SpanFacts]
    linked: Mapping[str, list[SpanFacts]]
    tracking_uri: str

    @property
    def trace_id(self) -> str:
        """Its MLflow id, ``tr-`` and 32 hexadecimal digits."""
        return str(self.trace.info.trace_id)

    @property
    def url(self) -> str | None:
        """Its URL in MLflow's UI; ``None`` if it was read from a store without a server."""
        return trace_url(self.tracking_uri, self.trace.info.experiment_id, self.trace_id)


def trace_url(tracking_uri: str, experiment_id: str | None, trace_id: str) -> str | None:
    """Return the URL of a trace in MLflow's UI; ``None`` if the tracking URI is not that of a server."""
    if not tracking_uri.startswith(("http://", "https://")):
        return None
    return f"{tracking_uri.rstrip('/')}/#/experiments/{experiment_id}/traces?selectedEvaluationId={quote(trace_id)}"


def missing_parents_text(spans: Sequence[SpanFacts]) -> str:
    """Return a hint about gateway calls whose parent span is not in the trace; ``""`` if there are none."""
    known = {span.span_id for span in spans}
    missing = sum(span.kind == "gateway" and span.parent_id not in {None, *known} for span in spans)
    if not missing:
        return ""
    calls = "1 gateway call is" if missing == 1 else f"{missing} gateway calls are"
    return (
        f"{calls} here without the agent's span that made the call. While the agent runs, MLflow sends spans some 5 s "
        "after they end; a script must end with mlflow.flush_trace_async_logging(), or its last spans can be lost."
    )


def read_joined(trace_id: str, tracking_uri: str | None = None) -> JoinedTrace:
    """Read a trace and its linked traces.

    Args:
        trace_id: MLflow's id, or W3C's 32 hexadecimal digits.
        tracking_uri: The MLflow server or store; by default the one that MLflow is configured to use.

    Raises:
        NotFoundError: The trace does not exist, or MLflow does not answer.
    """
    match = _TRACE_ID.match(trace_id.strip().lower())
    client = client_for(tracking_uri)
    trace = _get(client, mlflow_trace_id(int(match[1], 16)) if match else trace_id.strip())
    spans = facts_of(trace)
    linked = {}
    for linked_id in dict.fromkeys(one.linked_trace_id for one in spans if one.linked_trace_id):
        try:
            linked[linked_id] = facts_of(_get(client, linked_id))
        except NotFoundError:
            continue
    return JoinedTrace(trace, spans, linked, client.tracking_uri)


def last_trace_id(tracking_uri: str | None = None, experiment: str | None = None) -> str:
    """Return the id of the newest trace that is not a gateway's own.

    Args:
        tracking_uri: The MLflow server or store; by default the one that MLflow is configured to use.
        experiment: Name or id of the experiment; by default all experiments.

    Raises:
        NotFoundError: There is none, or MLflow does not answer.
    """
    client = client_for(tracking_uri)
    try:
        newest = client.search_traces(
            locations=experiment_ids(client, experiment),
            max_results=_LATEST,
            order_by=["timestamp_ms DESC"],
            include_spans=False,
        )
    except MlflowException as error:
        raise unreadable(client, error) from error
    for trace in newest:
        if not is_gateways_own(trace):
            return str(trace.info.trace_id)
    raise NotFoundError(
        f"{client.tracking_uri} has no trace of an agent among its newest. Run the agent first (a script must end with "
        "mlflow.flush_trace_async_logging()), or choose another server with --tracking-uri."
    )


def experiment_ids(client: TracingClient, experiment: str | None) -> list[str]:
    """Return the ids of the experiments with a name or an id; of all experiments for ``None``."""
    try:
        known = {one.experiment_id: one.name for one in client.store.search_experiments(max_results=_EXPERIMENTS)}
    except MlflowException as error:
        raise unreadable(client, error) from error
    wanted = [i for i, name in known.items() if experiment is None or experiment in (i, name)]
    if not wanted:
        names = ", ".join(sorted(known.values())[:_NAMED])
        raise NotFoundError(f"{client.tracking_uri} has no experiment {experiment!r}; it has {names}.")
    return wanted


def is_gateways_own(trace: Trace) -> bool:
    """Return whether a trace is one that MLflow's gateway records of itself."""
    return any(key.startswith(_GATEWAYS_OWN) for key in trace.info.trace_metadata)


def client_for(tracking_uri: str | None) -> TracingClient:
    """Return MLflow's client of a server; for ``None``, of the one that MLflow is configured to use."""
    try:
        return TracingClient(tracking_uri)
    except MlflowException as error:
        raise NotFoundError(f"MLflow cannot use the tracking URI {tracking_uri!r} ({error.error_code}).") from error
    except ModuleNotFoundError as error:
        # mlflow-tracing alone can read from a server, but not from a folder or a database.
        raise MissingDependencyError(
            "No server to read the trace from: set MLFLOW_TRACKING_URI or give --tracking-uri, like "
            f"http://localhost:5000. (A local store needs all of MLflow: {install_command('mlflow-gateway')})"
        ) from error


def _get(client: TracingClient, trace_id: str) -> Trace:
    try:
        return client.get_trace(trace_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"):
            raise NotFoundError(
                f"{client.tracking_uri} has no trace {trace_id}. Is it on another server, or has the agent not sent it "
                "yet? (mlflow.flush_trace_async_logging() sends queued spans.)"
            ) from error
        raise unreadable(client, error) from error


def unreadable(client: TracingClient, error: MlflowException) -> NotFoundError:
    """Return the error for a server that failed to answer."""
    return NotFoundError(
        f"MLflow at {client.tracking_uri} failed to answer ({error.error_code}); is it running, and are "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD set if it requires them?"
    )
