"""An MLflow tracking server over HTTP, with requests that succeed or fail quickly.

MLflow's own client retries for minutes. If the server is away when the client asks for its version, the client assumes
for the life of the process that the server does not support tracing. The requests here are the same, with MLflow's
authentication and without its retries.

Traces are looked up by a search in the experiments that we may read: MLflow before 3.18 refuses a look-up by ids if one
of the traces does not exist yet or may not be read.
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
from agent_gateway_client.server.export.totals import TraceTotals, read_totals

TIMEOUT_SECONDS = 30
"""Timeout of a request. After it the same spans are sent again, which is idempotent."""

_EXPERIMENTS_SECONDS = 1.0
"""Maximum age of the list of experiments when a trace is in none of them."""

_EXPERIMENTS_AT_ONCE = 200
_TRACES = "/api/3.0/mlflow/traces"
_EXPERIMENTS = "/api/2.0/mlflow/experiments/search"
_WORKSPACES = "/api/3.0/mlflow/workspaces"
_PAGE = 1_000


class ServerResponseError(ConnectionError):
    """The server responded with an error.

    Attributes:
        status: The HTTP status.
        error_code: MLflow's error code, if the response has one.
        retry_after: The server's ``Retry-After`` in seconds, if it sent one.
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
        store: MLflow's client of the server, which has its address and credentials.
    """

    known_seconds = 5.0
    batches_per_look_up = 4
    """A look-up of one trace costs the server a tenth of a write; each further one a hundredth of that, for parsing."""

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
            # The workspace is that of MLFLOW_WORKSPACE.
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
        self._request("POST", OTLP_TRACES_PATH, data=request.SerializeToString(), extra_headers=headers)

    def totals_of(
        self, trace_ids: Collection[str], experiment_ids: Collection[str], known: Mapping[str, TraceTotals]
    ) -> Mapping[str, TraceTotals]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        infos = self._search_infos(ended_filter(trace_ids), list(experiment_ids), len(trace_ids))
        return read_totals({info.trace_id: info for info in infos}, self._traces)

    def set_metadata(self, trace_id: str, metadata: Mapping[str, str]) -> None:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        answer = GetTraceInfoV3.Response()
        _parse(self._request("GET", f"{_TRACES}/{trace_id}"), answer)
        info = TraceInfo.from_proto(answer.trace.trace_info)
        request = StartTraceV3()
        request.trace.trace_info.CopyFrom(with_metadata(info, metadata).to_proto())
        self._request("POST", _TRACES, json=_as_json(request))

    def workspaces(self) -> Iterable[str]:
        """See :class:`~agent_gateway_client.server.export.mlflow.Store`."""
        try:
            answer = self._request("GET", _WORKSPACES)
        except ServerResponseError:
            logger.debug("The MLflow server has no workspaces, or they may not be listed", exc_info=True)
            return []
        return [workspace["name"] for workspace in answer.get("workspaces", ())]

    def _traces(self, trace_ids: Sequence[str]) -> list[Trace]:
        answer = BatchGetTraces.Response()
        _parse(self._request("GET", f"{_TRACES}/batchGet", params={"trace_ids": trace_ids}), answer)
        return [Trace.from_proto(trace) for trace in answer.traces]

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
        _parse(self._request("POST", f"{_TRACES}/search", json=_as_json(request)), answer)
        return [TraceInfo.from_proto(info) for info in answer.traces]

    def _new_experiments(self) -> list[str]:
        """Return the experiments that have become readable since the last call."""
        now, workspace = time.monotonic(), get_request_workspace()
        if now < self._read_at.get(workspace, -math.inf) + _EXPERIMENTS_SECONDS:
            return []
        known, page_token = set(self._experiments.get(workspace, [])), ""
        experiments: list[str] = []
        while True:
            request = {"max_results": _PAGE, "view_type": "ACTIVE_ONLY", "page_token": page_token}
            answer = self._request("POST", _EXPERIMENTS, json=request)
            experiments += [experiment["experiment_id"] for experiment in answer.get("experiments", ())]
            page_token = answer.get("next_page_token", "")
            if not page_token:
                break
        self._experiments[workspace], self._read_at[workspace] = experiments, now
        return [experiment_id for experiment_id in experiments if experiment_id not in known]

    def _request(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
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
            raise ServerResponseError(response)
        if not response.headers.get("Content-Type", "").startswith("application/json"):
            return {}
        answer: dict[str, Any] = response.json()
        return answer


def _as_json(message: Any) -> Any:
    return json.loads(message_to_json(message))


def _parse(answer: dict[str, Any], message: Any) -> None:
    parse_dict(answer, message)  # type: ignore[no-untyped-call]
