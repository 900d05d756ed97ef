"""Helpers of the companion's tests: calls with all facts, and a destination that keeps what it receives."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from agent_gateway_client.names import mlflow_trace_id
from agent_gateway_client.server.call import Attempt, Cost, GatewayCall, TokenUsage
from agent_gateway_client.server.export import Destination, Exporter, Refused
from agent_gateway_client.server.export.destination import Place, TraceKey
from agent_gateway_client.server.mirror import Convention, mirror
from agent_gateway_client.w3c import TraceContext

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
SPAN_ID = 0xB7AD6B7169203331
PARENT = TraceContext(TRACE_ID, SPAN_ID, 1)
TRACEPARENT = PARENT.traceparent

DEADLINE_S = 60.0
"""How long a test waits for something that takes milliseconds on an idle machine."""


def full_call(**facts: Any) -> GatewayCall:
    """Return an ended call, with a failed and a successful attempt.

    All facts are known, and none has its normal value.
    """
    known: dict[str, Any] = {
        "parent": PARENT,
        "endpoint": "chat",
        "endpoint_id": "e-1",
        "operation": "chat",
        "request_type": "unified/chat",
        "server_address": "127.0.0.1:5000",
        "streaming": True,
        "http_status": 206,
        "time_to_first_chunk_ns": 1_500_000_000,
        "cache_hit": False,
        "start_time_ns": 1_000,
        "end_time_ns": 9_000,
        "error_type": "ClientPayloadError",
        "linked": TraceContext(0xB, 0xC, 1),
        "attempts": [
            Attempt(provider="openai", model="gpt-4o", start_time_ns=2_000, end_time_ns=3_000, error_type="503"),
            Attempt(
                provider="anthropic",
                model="claude-3-5-haiku",
                start_time_ns=4_000,
                end_time_ns=8_000,
                usage=TokenUsage(10, 5, 15, 4, 2, 3),
                cost=Cost(0.1, 0.2, 0.3),
                finish_reason="length",
                response_model="claude-3-5-haiku-20241022",
            ),
        ],
    }
    return GatewayCall(**{**known, **facts})


def plain_call(**facts: Any) -> GatewayCall:
    """Return a typical call: a complete answer without a stream, from MLflow's gateway, which keeps its own trace."""
    known: dict[str, Any] = {
        "streaming": False,
        "http_status": 200,
        "time_to_first_chunk_ns": None,
        "cache_hit": None,
        "error_type": None,
        "attempts": [plain_attempt()],
    }
    return full_call(**{**known, **facts})


def plain_attempt(**facts: Any) -> Attempt:
    """Return the attempt of a typical call."""
    known: dict[str, Any] = {
        "provider": "openai",
        "model": "gpt-4o-mini",
        "start_time_ns": 2_000,
        "end_time_ns": 8_000,
        "usage": TokenUsage(10, 5, 15, 0, 0),
        "cost": Cost(0.1, 0.2, 0.3),
        "finish_reason": "stop",
    }
    return Attempt(**{**known, **facts})


def small_call(endpoint: str) -> GatewayCall:
    """Return an ended call with little more than a name."""
    return GatewayCall(PARENT, endpoint=endpoint, start_time_ns=1, end_time_ns=2)


class MemoryDestination(Destination):
    """Keeps spans batch by batch; ``on_send`` may raise first, like a store that is down."""

    def __init__(
        self,
        on_send: Callable[[list[str]], object] = lambda names: None,
        convention: Convention = Convention.MLFLOW,
    ) -> None:
        self.convention = convention
        self.batches: list[list[ReadableSpan]] = []
        self.tries: list[list[str]] = []
        self._on_send = on_send
        self._changed = threading.Condition()

    def send(self, spans: Sequence[ReadableSpan], place: Place = None) -> None:
        names = [span.name for span in spans]
        with self._changed:
            self.tries.append(names)
            self._changed.notify_all()
        self._on_send(names)
        with self._changed:
            self.batches.append(list(spans))

    @property
    def spans(self) -> list[ReadableSpan]:
        return [span for batch in self.batches for span in batch]

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def wait_for_tries(self, count: int) -> None:
        """Wait until spans were sent to it this often, accepted or not."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.tries) >= count, DEADLINE_S)


class Store:
    """A destination's ``on_send``: blocks, is down, or rejects names, until told otherwise."""

    def __init__(self, *, away: bool = False, blocked: bool = False, rejected: tuple[str, ...] = ()) -> None:
        self.away = away
        self.open = threading.Event()
        if not blocked:
            self.open.set()
        self.rejected = {f"gateway/{name}" for name in rejected}

    def __call__(self, names: list[str]) -> None:
        assert self.open.wait(DEADLINE_S)
        if self.away:
            raise ConnectionError("canary: the store's address and what was sent to it")
        if self.rejected & set(names):
            raise Refused("it was told to")


def deliver_to(destination: Destination, *calls: GatewayCall) -> None:
    """Deliver calls to a destination as the exporter does; raises the error for calls that it does not accept."""
    keys = {id(call): TraceKey(call.parent.trace_id, call.workspace) for call in calls}
    places = destination.locate(set(keys.values()))
    for call in calls:
        destination.send(mirror(call, destination.convention), places[keys[id(call)]])
    destination.sent(places)
    destination.maintain(everything=True)


def begin_trace(store: Any, parent: TraceContext = PARENT, experiment_id: str = "0") -> None:
    """Start a caller's trace in an MLflow store, as if its agent had sent it."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    store.start_trace(
        TraceInfo(
            trace_id=mlflow_trace_id(parent.trace_id),
            trace_location=TraceLocation.from_experiment_id(experiment_id),
            request_time=1,
            state=TraceState.OK,
        )
    )


def gateways(names: str) -> list[str]:
    """Return the names of the gateway spans of calls whose names are one letter each."""
    return [f"gateway/{name}" for name in names]


def submit(exporter: Exporter, names: str) -> None:
    """Submit a call for each letter."""
    for name in names:
        exporter.submit(small_call(name))


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    """Return a span's attributes; MLflow's JSON is not decoded."""
    return dict(span.attributes or {})


def facts_of(span: ReadableSpan) -> dict[str, Any]:
    """Return a span's attributes, decoded from JSON in MLflow's convention."""
    attributes = attributes_of(span)
    if "mlflow.spanType" not in attributes:
        return attributes
    return {key: json.loads(value) for key, value in attributes.items()}


ORDINARY = {
    "gen_ai.request.stream": False,
    "http.response.status_code": 200,
    "gen_ai.response.finish_reasons": ["stop"],
}
"""The normal values, which are left out in MLflow's convention."""


def assert_told(facts: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that a span has these MLflow attributes, except those with normal values or ``None``."""
    told = {name: value for name, value in expected.items() if value is not None and value != ORDINARY.get(name)}
    assert {name: facts[name] for name in expected if name in facts} == told


def ids_of(span: ReadableSpan) -> tuple[int, int]:
    """Return the ids of a span and of its parent."""
    assert span.context is not None
    assert span.parent is not None
    return span.context.span_id, span.parent.span_id
