"""The exporter's counts as metrics, through OpenTelemetry's metrics API.

The names follow those of OpenTelemetry's SDK (``otel.sdk.exporter.span.exported``,
``otel.sdk.processor.span.queue.size``) with ``call`` for ``span``: a mirrored call has as many spans as attempts, and
one more. As there, what failed is counted with its reason as ``error.type``. Calls that were submitted are exported or
in the queue, so the three add up.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from agent_gateway_client._guard import Guard
from agent_gateway_client._version import __version__
from agent_gateway_client.server.observed.prometheus import Prometheus, find_prometheus

if TYPE_CHECKING:
    from agent_gateway_client.server.export.counts import Counts

ERROR_TYPE = "error.type"
_FORK_SECONDS = 1.0
"""How long a fork waits for a thread that counts."""

DELAY_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Metric(NamedTuple):
    """A metric.

    Attributes:
        name: Its name in OpenTelemetry; Prometheus's has underscores, and the ends ``_total`` or ``_seconds``.
        kind: How its values are taken together.
        unit: As OpenTelemetry writes it.
        description: What it counts.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str


SUBMITTED = Metric(
    "agent_gateway.exporter.call.submitted", "counter", "{call}", "Calls that ended and are to be mirrored."
)
EXPORTED = Metric(
    "agent_gateway.exporter.call.exported",
    "counter",
    "{call}",
    "Calls that are done with: mirrored, or dropped for the reason that error.type gives.",
)
QUEUE_SIZE = Metric(
    "agent_gateway.exporter.call.queue.size",
    "gauge",
    "{call}",
    "Calls whose mirrors wait to be sent, or are being sent.",
)
QUEUE_CAPACITY = Metric(
    "agent_gateway.exporter.call.queue.capacity",
    "gauge",
    "{call}",
    "Calls that may wait; beyond it the oldest are dropped.",
)
REJECTED_SPANS = Metric(
    "agent_gateway.exporter.span.rejected",
    "counter",
    "{span}",
    "Spans that an OTLP endpoint rejected of requests that it took.",
)
DELAY = Metric(
    "agent_gateway.exporter.call.delay", "histogram", "s", "Time from the end of a call until its mirror was stored."
)
METRICS = (SUBMITTED, EXPORTED, QUEUE_SIZE, QUEUE_CAPACITY, REJECTED_SPANS, DELAY)

Key = tuple[Metric, str | None]
"""A metric, and the reason where it counts what was dropped."""

_harmless = Guard("Metrics of mirrored calls are incomplete", "opentelemetry-api", "prometheus_client")


class ExporterMeter:
    """Adds what becomes of one exporter's calls to the process's metrics. Only the exporter's threads use it.

    Args:
        capacity: Calls that may wait.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._noted: Counter[Key] = Counter()

    def note(self, read_counts: "Callable[[], Counts]", delays: Sequence[float] = ()) -> None:
        """Bring the metrics up to the counts. Never raises.

        Args:
            read_counts: Returns what became of the calls so far.
            delays: Of the calls that were just sent, the seconds from their end until now.
        """
        with _harmless, self._lock:
            counts = read_counts()
            now: Counter[Key] = Counter()
            now[SUBMITTED, None] = counts.submitted
            now[EXPORTED, None] = counts.sent
            for reason, count in counts.dropped.items():
                now[EXPORTED, reason] = count
            now[QUEUE_SIZE, None] = counts.waiting
            now[QUEUE_CAPACITY, None] = self._capacity
            now[REJECTED_SPANS, None] = counts.rejected_spans
            changes = {key: count - self._noted[key] for key, count in now.items()}
            self._noted = now
            _process.add(changes, delays)


class _Process:
    """The metrics of all exporters of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[Key] = Counter()
        self._delay: Any = None
        self._prometheus: Prometheus | None = None
        self._is_started = False
        self._is_held = False

    def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._delay = _make_instruments(self)
            self._prometheus = find_prometheus(METRICS, DELAY_BUCKETS)

    def add(self, changes: dict[Key, int], delays: Iterable[float]) -> None:
        """Add to the values, here and at Prometheus; record the delays."""
        # The lock is held all the time, so that no fork leaves a lock of the two packages behind.
        with self._lock:
            self._start()
            self._values.update(changes)
            for seconds in delays:
                self._delay.record(seconds)
            if self._prometheus is not None:
                for (metric, reason), change in changes.items():
                    self._prometheus.add(metric.name, reason, change)
                for seconds in delays:
                    self._prometheus.observe(DELAY.name, seconds)

    def read(self, metric: Metric) -> list[tuple[int, dict[str, str]]]:
        """Return the values of a metric with their attributes."""
        with self._lock:
            values = [(reason, value) for (of, reason), value in self._values.items() if of == metric]
        return [(value, {} if reason is None else {ERROR_TYPE: reason}) for reason, value in values]

    def before_fork(self) -> None:
        """Let nobody be amid a change."""
        self._is_held = self._lock.acquire(timeout=_FORK_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._is_held:
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew: what the parent counted is the parent's to tell."""
        self._lock = threading.Lock()
        self._values.clear()


def start(reasons: Iterable[str]) -> None:
    """Make the instruments before the first call, and count no dropped calls for each reason. Never raises.

    Without the zeros, Prometheus sees no increase when the first call is dropped for a reason: to ``increase()``, a
    series begins at its first value.

    Args:
        reasons: Why calls are dropped.
    """
    with _harmless:
        _process.add({(EXPORTED, reason): 0 for reason in reasons}, ())


def _make_instruments(process: _Process) -> Any:
    """Make OpenTelemetry's instruments, which are nothing as long as nobody asks for them. Returns the histogram."""
    from opentelemetry.metrics import Observation, get_meter

    meter = get_meter("agent-gateway-client", __version__)

    def reading(metric: Metric) -> Any:
        return lambda options: [Observation(value, attributes) for value, attributes in process.read(metric)]

    for metric in METRICS:
        if metric.kind == "counter":
            meter.create_observable_counter(metric.name, [reading(metric)], metric.unit, metric.description)
        elif metric.kind == "gauge":
            meter.create_observable_up_down_counter(metric.name, [reading(metric)], metric.unit, metric.description)
    return meter.create_histogram(
        DELAY.name, DELAY.unit, DELAY.description, explicit_bucket_boundaries_advisory=DELAY_BUCKETS
    )


_process = _Process()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_process.before_fork,
        after_in_parent=_process.after_fork_in_parent,
        after_in_child=_process.after_fork_in_child,
    )
