"""How fast mirrors are stored: the exporter compared with the time that its destination needs alone."""

import gc
import logging
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mlflow.entities import TraceInfo, TraceLocation, TraceState
from mlflow.tracing.client import TracingClient
from opentelemetry.sdk.trace import ReadableSpan

from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.server.call import Attempt, GatewayCall, TokenUsage, new_span_id
from agent_gateway_client.server.export import Destination, Exporter
from agent_gateway_client.server.export.destination import Place, TraceKey
from agent_gateway_client.server.export.mlflow import MlflowDestination
from agent_gateway_client.server.export.mlflow_store import SqlStore
from agent_gateway_client.server.export.otlp import OtlpDestination
from agent_gateway_client.server.export.totals import FINALIZED
from agent_gateway_client.server.mirror import mirror
from agent_gateway_client.w3c import TraceContext
from benchmarks.measure import estimate, interleave, paired
from benchmarks.report import Report
from benchmarks.stores import no_postgres, otlp_sink, postgres

EXPORTER = "through the exporter"
DESTINATION = "the destination's look-ups, writes and totals"
WRITES = "the destination's writes alone"
ROUNDS = 40
LOOK_UPS = 1
"""Look-ups of calls per round: short, as a machine's speed may change from one second to the next."""


def run(report: Report) -> None:
    logging.disable(logging.INFO)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-gateway-")))
        compare(report, "SQLite", *_store(f"sqlite:///{directory / 'mlflow.db'}"))
        if reason := no_postgres():
            report.note(f"No PostgreSQL: {reason}.")
        else:
            compare(report, "PostgreSQL", *_store(stack.enter_context(postgres())))
        stack.enter_context(_environment("OTEL_EXPORTER_OTLP_ENDPOINT", stack.enter_context(otlp_sink())))
        compare(report, "OTLP", OtlpDestination())


def compare(report: Report, name: str, destination: Destination, store: Any = None) -> None:
    """Store calls through the exporter and, in turns, the same spans in the largest batches without it.

    Args:
        report: Collects the figures.
        name: The destination's name.
        destination: The destination of the calls.
        store: MLflow's store, in which the callers' traces are started first.
    """
    exporter = Exporter(destination)
    calls = LOOK_UPS * destination.max_located
    _exported(exporter, _calls(10, store))
    # A full collection of all objects that MLflow has imported takes as long as fifty calls.
    gc.collect()
    gc.freeze()
    with ThreadPoolExecutor(1) as thread:
        # In a thread, as gateways and the exporter write: the same write takes up to a tenth longer there.
        cases = {
            EXPORTER: lambda: calls / _exported(exporter, _calls(calls, store)),
            DESTINATION: lambda: calls / thread.submit(_stored, destination, _calls(calls, store)).result(),
            WRITES: lambda: calls / thread.submit(_written, destination, _calls(calls, store)).result(),
        }
        samples = interleave(cases, seconds=0, warm_up=0, least=ROUNDS)
    assert exporter.dropped == 0
    group = f"mirrored calls stored, {name}, batches of {destination.max_batch}"
    report.compared(group, samples, DESTINATION, "calls/s")
    if store is not None:
        share, _, _ = estimate(paired(EXPORTER, DESTINATION), samples)
        report.mark(f"Exporter, {name}, in terms of what its destination takes", share, 0.95, at_least=True)
        without, _, _ = estimate(paired(EXPORTER, WRITES), samples)
        report.note(f"Exporter, {name}: {without:.2f} of the destination's writes alone.")


def _exported(exporter: Exporter, calls: Sequence[GatewayCall]) -> float:
    begin = time.perf_counter()
    for call in calls:
        exporter.submit(call)
    assert exporter.flush(120)
    return time.perf_counter() - begin


def _stored(destination: Destination, calls: Sequence[GatewayCall]) -> float:
    """Store mirrors that are made before, with all that the destination does for it, and return the seconds."""
    spans = _mirrors(destination, calls)
    begin = time.perf_counter()
    for start in range(0, len(calls), destination.max_located):
        group = slice(start, start + destination.max_located)
        places = destination.locate({TraceKey(call.parent.trace_id) for call in calls[group]})
        (place,) = set(places.values())
        _send(destination, spans[group], place)
        destination.sent(places)
        destination.maintain()
    destination.maintain(everything=True)
    return time.perf_counter() - begin


def _written(destination: Destination, calls: Sequence[GatewayCall]) -> float:
    """Write mirrors that are made before, and return the seconds."""
    spans = _mirrors(destination, calls)
    (place,) = set(destination.locate({TraceKey(call.parent.trace_id) for call in calls}).values())
    begin = time.perf_counter()
    _send(destination, spans, place)
    return time.perf_counter() - begin


def _mirrors(destination: Destination, calls: Sequence[GatewayCall]) -> list[list[ReadableSpan]]:
    return [mirror(call, destination.convention) for call in calls]


def _send(destination: Destination, spans: Sequence[list[ReadableSpan]], place: Place) -> None:
    for start in range(0, len(spans), destination.max_batch):
        destination.send([span for both in spans[start : start + destination.max_batch] for span in both], place)


def _calls(count: int, store: Any) -> list[GatewayCall]:
    """Calls of agents that make ten of them per trace, with traces that the store knows."""
    found = []
    trace_id = 0
    for number in range(count):
        if number % 10 == 0:
            trace_id = start_trace(store) if store is not None else new_trace_id()
        found.append(call_in(trace_id))
    return found


def new_trace_id() -> int:
    return new_span_id() << 64 | new_span_id()


def start_trace(store: Any, *, ended: bool = False) -> int:
    """Store a trace, as its caller does, and return its id."""
    trace_id = new_trace_id()
    info = TraceInfo(
        mlflow_trace_id(trace_id),
        TraceLocation.from_experiment_id("0"),
        request_time=1,
        state=TraceState.OK if ended else TraceState.IN_PROGRESS,
        trace_metadata={FINALIZED: "true"} if ended else {},
    )
    store.start_trace(info)
    return trace_id


def call_in(trace_id: int) -> GatewayCall:
    """Return an ended call of a trace."""
    call = GatewayCall(TraceContext(trace_id, new_span_id(), 1), endpoint="chat", http_status=200)
    call.add(Attempt("openai", "gpt-4o-mini", usage=TokenUsage(10, 3, 13), finish_reason="stop"))
    call.end()
    return call


def _store(uri: str) -> tuple[Destination, Any]:
    store = TracingClient(uri).store
    return MlflowDestination(SqlStore(lambda: store)), store


def _environment(name: str, value: str) -> Any:
    from unittest.mock import patch

    return patch.dict("os.environ", {name: value})
