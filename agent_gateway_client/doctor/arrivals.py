"""Checks whether the mirrors of a program's requests have arrived in its traces."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from agent_gateway_client.doctor.program import Request
from agent_gateway_client.doctor.store import mirrors_in
from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.w3c import TRACEPARENT, extract

_POLL_S = 0.2


def with_mirrors(requests: Sequence[Request], client: TracingClient, patience_s: float) -> list[Request]:
    """Return the requests with ``mirror`` set for those that carry a trace context.

    Requests with the same parent span, such as retries, need one mirror each; mirrors are assigned in the order of the
    requests. Requests that are not model calls come last, and are never marked as missing one.

    Args:
        requests: The program's requests in the order in which they were sent.
        client: Client of the tracking server.
        patience_s: Seconds to wait for all mirrors together.
    """
    deadline = time.monotonic() + patience_s
    while True:
        found = _look(requests, client)
        if all(request.mirror is not False for request in found) or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_S)


def _look(requests: Sequence[Request], client: TracingClient) -> list[Request]:
    parents = [_parent(request) for request in requests]
    mirrors: Counter[tuple[str, str | None]] = Counter()
    for trace_id in {parent[0] for parent in parents if parent}:
        try:
            trace = client.get_trace(trace_id)
        except MlflowException:
            continue
        mirrors.update((trace_id, span.parent_id) for span in mirrors_in(trace))
    found = list(requests)
    for index in sorted(range(len(found)), key=lambda index: not found[index].is_model_call):
        parent = parents[index]
        if parent is None:
            continue
        if mirrors[parent] > 0:
            mirrors[parent] -= 1
            found[index] = found[index]._replace(mirror=True)
        elif found[index].is_model_call:
            found[index] = found[index]._replace(mirror=False)
    return found


def _parent(request: Request) -> tuple[str, str] | None:
    """Return the trace id and the parent span id of a request to a gateway; ``None`` if it is not sampled."""
    if request.outcome not in ("sent", "kept") or request.traceparent is None:
        return None
    context = extract([(TRACEPARENT, request.traceparent)])
    return (mlflow_trace_id(context.trace_id), f"{context.span_id:016x}") if context and context.sampled else None
