"""The metrics for Prometheus, if ``prometheus_client`` is installed.

They are in its default registry, so a gateway that serves that registry serves them too. With
``PROMETHEUS_MULTIPROC_DIR``, the package's way to aggregate workers, any worker reports for all.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_gateway_client.server.observed.metrics import Metric

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "agent_gateway_"
_LABEL = "error_type"


class Prometheus:
    """The metrics in ``prometheus_client``'s default registry.

    Args:
        client: The package.
        metrics: The metrics.
        buckets: The histogram's buckets.
    """

    def __init__(self, client: Any, metrics: "Iterable[Metric]", buckets: Sequence[float]) -> None:
        self._made: dict[str, Any] = {}
        for metric in metrics:
            name, labels = metric.name.replace(".", "_"), [_LABEL] if metric.name.endswith(".exported") else []
            if metric.kind == "counter":
                made = client.Counter(name, metric.description, labels)
            elif metric.kind == "gauge":
                made = client.Gauge(name, metric.description, multiprocess_mode="livesum")
            else:
                made = client.Histogram(name, metric.description, unit="seconds", buckets=buckets)
            self._made[metric.name] = made.labels("") if labels else made
            if labels:
                self._labelled = made

    def add(self, name: str, reason: str | None, change: int) -> None:
        """Add to a counter or a gauge."""
        (self._made[name] if reason is None else self._labelled.labels(reason)).inc(change)

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        self._made[name].observe(value)


def find_prometheus(metrics: "Iterable[Metric]", buckets: Sequence[float]) -> Prometheus | None:
    """Return the metrics for Prometheus; ``None`` if ``prometheus_client`` is not installed."""
    if not is_installed():
        return None
    make_directory()
    return Prometheus(import_module("prometheus_client"), metrics, buckets)


def make_directory() -> None:
    """Create the directory that the workers share; without it, creating a metric fails."""
    if directory := os.environ.get(DIRECTORY_VARIABLE):
        Path(directory).mkdir(parents=True, exist_ok=True)


def is_installed() -> bool:
    """Return whether ``prometheus_client`` is installed."""
    return find_spec("prometheus_client") is not None


def page() -> tuple[str, bytes] | None:
    """Return the media type and the text of our metrics; ``None`` if ``prometheus_client`` is not installed.

    With ``PROMETHEUS_MULTIPROC_DIR`` the metrics of all workers, else those of this one.
    """
    if not is_installed():
        return None
    client = import_module("prometheus_client")
    registry = client.REGISTRY
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if directory:
        multiprocess = import_module("prometheus_client.multiprocess")
        for pid in _dead_workers(Path(directory)):
            # Another worker may do the same at the same time.
            with suppress(FileNotFoundError):
                multiprocess.mark_process_dead(pid, directory)
        registry = client.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, directory)
    return client.CONTENT_TYPE_LATEST, client.generate_latest(_Ours(registry))


class _Ours:
    """A registry restricted to our metrics; others are for the pages of their owners."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Any]:
        return (metric for metric in self._registry.collect() if metric.name.startswith(PREFIX))


def _dead_workers(directory: Path) -> set[int]:
    """Return the workers that have exited but still have gauges; nothing is queued in them."""
    pids = {int(path.stem.rpartition("_")[2]) for path in directory.glob("gauge_live*_*.db") if path.stem[-1].isdigit()}
    return {pid for pid in pids if not _is_alive(pid)}


def _is_alive(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
