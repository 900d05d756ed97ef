"""The exporter's counts as metrics, through OpenTelemetry's metrics API.

The names follow those of OpenTelemetry's SDK (``otel.sdk.exporter.span.exported``,
``otel.sdk.processor.span.queue.size``) with ``call`` for ``span``: a mirrored call has one span, and one more per
attempt. As there, failures are counted with their reason as ``error.type``. Exported calls and the queue's size add up
to the submitted calls.
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
"""How long a fork waits for another thread's update."""

DELAY_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Metric(NamedTuple):
    """A metric.

    Attributes:
        name: The name in OpenTelemetry; Prometheus's has underscores, and the suffix ``_total`` or ``_seconds``.
        kind: The kind of instrument.
        unit: OpenTelemetry's unit.
        description: The description.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str


SUBMITTED = Metric(
    "agent_gateway.exporter.call.submitted", "counter", "{call}", "Ended calls that were submitted to be mirrored."
)
EXPORTED = Metric(
    "agent_gateway.exporter.call.exported",
    "counter",
    "{call}",
    "Calls that were mirrored, or dropped for the reason in error.type.",
)
QUEUE_SIZE = Metric(
    "agent_gateway.exporter.call.queue.size",
    "gauge",
    "{call}",
    "Calls that are queued or being sent.",
)
QUEUE_CAPACITY = Metric(
    "agent_gateway.exporter.call.queue.capacity",
    "gauge",
    "{call}",
    "Maximum number of queued calls; the oldest are dropped.",
)
REJECTED_SPANS = Metric(
    "agent_gateway.exporter.span.rejected",
    "counter",
    "{span}",
    "Spans that an OTLP endpoint rejected in requests that it accepted.",
)
DELAY = Metric(
    "agent_gateway.exporter.call.delay", "histogram", "s", "Time from the end of a call until its mirror was stored."
)
METRICS = (SUBMITTED, EXPORTED, QUEUE_SIZE, QUEUE_CAPACITY, REJECTED_SPANS, DELAY)

Key = tuple[Metric, str | None]
"""A metric, and the reason if it counts dropped calls."""

_guard = Guard("Metrics of mirrored calls are incomplete", "opentelemetry-api", "prometheus_client")


class ExporterMeter:
    """Adds the outcomes of one exporter's calls to the process's metrics. Used in the exporter's threads only.

    Args:
        capacity: Maximum number of queued calls.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._noted: Counter[Key] = Counter()

    def note(self, read_counts: "Callable[[], Counts]", delays: Sequence[float] = ()) -> None:
        """Update the metrics to the counts. Never raises.

        Args:
            read_counts: Returns the outcomes of the calls so far.
            delays: For each call that was just sent, the seconds since it ended.
        """
        with _guard, self._lock:
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
        """Add to the values, here and in Prometheus; record the delays."""
        # The lock is held throughout, so that a fork cannot happen while a lock of the two packages is held.
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
        """Wait until no thread is updating the metrics."""
        self._is_held = self._lock.acquire(timeout=_FORK_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Allow updates again."""
        if self._is_held:
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Start from zero: the parent reports its own counts."""
        self._lock = threading.Lock()
        self._values.clear()


def start(reasons: Iterable[str]) -> None:
    """Create the instruments before the first call, and count no dropped calls for each reason. Never raises.

    Without the zeros, Prometheus sees no increase when the first call is dropped for a reason: to ``increase()``, a
    series begins at its first value.

    Args:
        reasons: Why calls are dropped.
    """
    with _guard:
        _process.add({(EXPORTED, reason): 0 for reason in reasons}, ())


def _make_instruments(process: _Process) -> Any:
    """Create OpenTelemetry's instruments, which are no-ops without a meter provider. Returns the histogram."""
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
