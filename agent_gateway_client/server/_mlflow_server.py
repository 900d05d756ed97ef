"""Spans to an MLflow tracking server by one request, which succeeds or fails soon.

MLflow's own ``RestStore.log_spans()`` is made for clients: it asks for the server's version first, and if the server
is away just then, takes it for one without tracing for as long as the process lives; and it tries a server that is
away for minutes, in which the exporter could not read the calls that come in. The request is the same: OTLP, with
MLflow's authentication.
"""

from collections.abc import Callable
from typing import Any

from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracing.utils.otlp import MLFLOW_EXPERIMENT_ID_HEADER, OTLP_TRACES_PATH, resource_to_otel_proto
from mlflow.utils.rest_utils import http_request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TIMEOUT_SECONDS = 30
"""Of one request; a server that takes longer is asked again with the same spans, which does no harm."""


class ServerAnswered(ConnectionError):
    """The server did not take the spans.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"MLflow answered {status}")
        self.status = status


def log_spans_function(store: Any) -> Callable[[str, list[Any]], object] | None:
    """Return what sends an experiment's spans to the server of a store; ``None`` where it is another kind of store."""
    if not isinstance(store, RestStore) or type(store).log_spans is not RestStore.log_spans:
        return None

    def log_spans(experiment_id: str, spans: list[Any]) -> None:
        request = ExportTraceServiceRequest()
        resource_spans = request.resource_spans.add()
        resource_spans.resource.CopyFrom(resource_to_otel_proto(spans[0]._span.resource))
        resource_spans.scope_spans.add().spans.extend(span.to_otel_proto() for span in spans)
        response = http_request(  # type: ignore[no-untyped-call]
            host_creds=store.get_host_creds(),
            endpoint=OTLP_TRACES_PATH,
            method="POST",
            data=request.SerializeToString(),
            extra_headers={
                "Content-Type": "application/x-protobuf",
                MLFLOW_EXPERIMENT_ID_HEADER: experiment_id,
            },
            max_retries=0,
            raise_on_status=False,
            timeout=TIMEOUT_SECONDS,
        )
        if response.status_code != 200:
            raise ServerAnswered(response.status_code)

    return log_spans
