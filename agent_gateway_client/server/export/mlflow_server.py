"""An MLflow tracking server, asked over HTTP, by requests that succeed or fail soon.

MLflow's own client is made for programs that wait: it tries a server that is away for minutes, and where the server is
away when it asks for its version, it takes it for one without tracing for as long as the process lives. The requests
here are the same, with MLflow's authentication and without its retries.

Traces are looked up by a search in the experiments that we may read. MLflow before 3.18 refuses to look a list of
traces up by their ids if one of them does not exist yet, or is not ours to read.
"""

import json
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mlflow.entities import Trace, TraceInfo
from mlflow.protos.service_pb2 import BatchGetTraces, GetTraceInfoV3, SearchTracesV3, StartTraceV3
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracing.utils.otlp import MLFLOW_EXPERIMENT_ID_HEADER, OTLP_TRACES_PATH, resource_to_otel_proto
from mlflow.utils.proto_json_utils import message_to_json, parse_dict
from mlflow.utils.rest_utils import http_request
from mlflow.utils.workspace_context import get_request_workspace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent_gateway_client._log import logger
from agent_gateway_client.server.export.destination import address_of
from agent_gateway_client.server.export.mlflow_store import ended_filter, ids_filter, with_metadata
from agent_gateway_client.server.export.totals import TraceTotals, totals_from

TIMEOUT_SECONDS = 30
"""Of one request; a server that takes longer is asked again with the same spans, which does no harm."""

_EXPERIMENTS_SECONDS = 1.0
"""How old the list of experiments may be when a trace is in none of them."""

_EXPERIMENTS_AT_ONCE = 200
_TRACES = "/api/3.0/mlflow/traces"
_EXPERIMENTS = "/api/2.0/mlflow/experiments/search"
_WORKSPACES = "/api/3.0/mlflow/workspaces"
_PAGE = 1_000


class ServerAnswered(ConnectionError):
    """The server did not do what it was asked to.

    Attributes:
        status: The HTTP status.
        error_code: MLflow's code, where the answer has one.
        retry_after: The seconds after which the server asks to be tried again, where it says so.
    """

    def __init__(self, response: Any) -> None:
        super().__init__(f"MLflow answered {response.status_code}")
        self.status: int = response.status_code
        after = response.headers.get("Retry-After", "")
        self.retry_after = float(after) if after.isdecimal() else None
        try:
            self.error_code = response.json().get("error_code")
        except (ValueError, AttributeError):
            self.error_code = None


class HttpStore:
    """A tracking server.

    Args:
        store: MLflow's own client of it, which knows its address and credentials.
    """

    known_seconds = 5.0
    """To ask costs the server a fifteenth of a write."""

    def __init__(self, store: RestStore) -> None:
        self._rest = store
        self._experiments: dict[str | None, list[str]] = {}
        self._read_at: dict[str | None, float] = {}
        """By workspace, when the experiments were read, in seconds of the monotonic clock."""

    @property
    def description(self) -> str:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        return f"MLflow at {address_of(self._rest.get_host_creds().host)}"

    def in_workspace(self, workspace: str | None) -> AbstractContextManager[object]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        if workspace is None:
            # That of MLFLOW_WORKSPACE.
            return nullcontext()
        from mlflow.utils.workspace_context import ServerWorkspaceContext

        return ServerWorkspaceContext(workspace)

    def experiments_of(self, trace_ids: Collection[str]) -> Mapping[str, str]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        found = self._search(trace_ids, self._experiments.get(get_request_workspace(), []))
        missing = [trace_id for trace_id in trace_ids if trace_id not in found]
        if missing:
            found |= self._search(missing, self._new_experiments())
        return found

    def log_spans(self, experiment_id: str, spans: list[Any]) -> None:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        request = ExportTraceServiceRequest()
        resource_spans = request.resource_spans.add()
        resource_spans.resource.CopyFrom(resource_to_otel_proto(spans[0]._span.resource))
        resource_spans.scope_spans.add().spans.extend(span.to_otel_proto() for span in spans)
        headers = {"Content-Type": "application/x-protobuf", MLFLOW_EXPERIMENT_ID_HEADER: experiment_id}
        self._ask("POST", OTLP_TRACES_PATH, data=request.SerializeToString(), extra_headers=headers)

    def totals_of(self, trace_ids: Collection[str], experiment_ids: Collection[str]) -> Mapping[str, TraceTotals]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        infos = self._search_infos(ended_filter(trace_ids), list(experiment_ids), len(trace_ids))
        by_id = {info.trace_id: info for info in infos}
        if not by_id:
            return {}
        answer = BatchGetTraces.Response()
        _parse(self._ask("GET", f"{_TRACES}/batchGet", params={"trace_ids": list(by_id)}), answer)
        traces = map(Trace.from_proto, answer.traces)
        return {trace.info.trace_id: totals_from(by_id[trace.info.trace_id], trace.data.spans) for trace in traces}

    def set_metadata(self, trace_id: str, metadata: Mapping[str, str]) -> None:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        answer = GetTraceInfoV3.Response()
        _parse(self._ask("GET", f"{_TRACES}/{trace_id}"), answer)
        info = TraceInfo.from_proto(answer.trace.trace_info)
        request = StartTraceV3()
        request.trace.trace_info.CopyFrom(with_metadata(info, metadata).to_proto())
        self._ask("POST", _TRACES, json=_as_json(request))

    def workspaces(self) -> Iterable[str]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        try:
            answer = self._ask("GET", _WORKSPACES)
        except ServerAnswered:
            logger.debug("The MLflow server has no workspaces, or does not let them be listed", exc_info=True)
            return []
        return [workspace["name"] for workspace in answer.get("workspaces", ())]

    def _search(self, trace_ids: Collection[str], experiment_ids: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(experiment_ids), _EXPERIMENTS_AT_ONCE):
            locations = experiment_ids[start : start + _EXPERIMENTS_AT_ONCE]
            for info in self._search_infos(ids_filter(trace_ids), locations, len(trace_ids)):
                found[info.trace_id] = info.experiment_id
        return found

    def _search_infos(self, filter_string: str, experiment_ids: Sequence[str], most: int) -> list[Any]:
        request = SearchTracesV3(filter=filter_string, max_results=most)
        for experiment_id in experiment_ids:
            request.locations.add().mlflow_experiment.experiment_id = experiment_id
        answer = SearchTracesV3.Response()
        _parse(self._ask("POST", f"{_TRACES}/search", json=_as_json(request)), answer)
        return [TraceInfo.from_proto(info) for info in answer.traces]

    def _new_experiments(self) -> list[str]:
        """Return the experiments that were made, or that we may read, since the last time."""
        now, workspace = time.monotonic(), get_request_workspace()
        if now < self._read_at.get(workspace, -math.inf) + _EXPERIMENTS_SECONDS:
            return []
        known, page_token = set(self._experiments.get(workspace, [])), ""
        experiments: list[str] = []
        while True:
            request = {"max_results": _PAGE, "view_type": "ACTIVE_ONLY", "page_token": page_token}
            answer = self._ask("POST", _EXPERIMENTS, json=request)
            experiments += [experiment["experiment_id"] for experiment in answer.get("experiments", ())]
            page_token = answer.get("next_page_token", "")
            if not page_token:
                break
        self._experiments[workspace], self._read_at[workspace] = experiments, now
        return [experiment_id for experiment_id in experiments if experiment_id not in known]

    def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        response = http_request(  # type: ignore[no-untyped-call]
            host_creds=self._rest.get_host_creds(),
            endpoint=path,
            method=method,
            max_retries=0,
            raise_on_status=False,
            timeout=TIMEOUT_SECONDS,
            **arguments,
        )
        if response.status_code != 200:
            raise ServerAnswered(response)
        if not response.headers.get("Content-Type", "").startswith("application/json"):
            return {}
        answer: dict[str, Any] = response.json()
        return answer


def _as_json(message: Any) -> Any:
    return json.loads(message_to_json(message))


def _parse(answer: dict[str, Any], message: Any) -> None:
    parse_dict(answer, message)  # type: ignore[no-untyped-call]
