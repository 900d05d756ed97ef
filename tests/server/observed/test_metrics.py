"""observed/metrics.py: the exporter's counts through OpenTelemetry's SDK, as an operator's reader gets them."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics as api
from opentelemetry.metrics import _internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.export.counts import Counts
from agent_gateway_client.server.observed import metrics
from tests.support.server import MemoryDestination, Store, submit


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """A reader in a process without counts."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(_internal, "_METER_PROVIDER", provider)
    assert api.get_meter_provider() is provider
    # Prometheus's registry belongs to the whole process: test_prometheus.py uses separate processes.
    monkeypatch.setattr(metrics, "find_prometheus", lambda *arguments: None)
    monkeypatch.setattr(metrics, "_process", metrics._Process())
    yield reader
    provider.shutdown()


def read(reader: InMemoryMetricReader) -> dict[tuple[str, str | None], Any]:
    """Return the values by name and reason; for a histogram, the number of its values."""
    data = reader.get_metrics_data()
    found: dict[tuple[str, str | None], Any] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            assert scope.scope.name == "agent-gateway-client"
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    reason = (point.attributes or {}).get("error.type")
                    found[metric.name, reason] = (
                        getattr(point, "value", None) if hasattr(point, "value") else point.count
                    )
    return found


def test_what_becomes_of_calls_is_counted(reader: InMemoryMetricReader):
    """Sent calls, dropped calls with the reason, and the time that each took are counted."""
    exporter = Exporter(MemoryDestination(Store(rejected=("c",))))
    submit(exporter, "abcd")
    assert exporter.flush()
    exporter.shutdown()
    assert read(reader) == {
        ("agent_gateway.exporter.call.submitted", None): 4,
        ("agent_gateway.exporter.call.exported", None): 3,
        ("agent_gateway.exporter.call.exported", "refused"): 1,
        ("agent_gateway.exporter.call.queue.size", None): 0,
        ("agent_gateway.exporter.call.queue.capacity", None): 10_000,
        ("agent_gateway.exporter.span.rejected", None): 0,
        ("agent_gateway.exporter.call.delay", None): 3,
    }


def test_what_waits_is_counted(reader: InMemoryMetricReader):
    """A store that is down shows as a growing queue, not as lost calls."""
    store = Store(away=True)
    destination = MemoryDestination(store)
    exporter = Exporter(destination, max_waiting_calls=3)
    submit(exporter, "abcde")
    destination.wait_for_tries(2)
    assert not exporter.flush(0.2)
    seen = read(reader)
    assert seen["agent_gateway.exporter.call.queue.size", None] == exporter.counts().waiting == 3
    assert seen["agent_gateway.exporter.call.exported", "queue_full"] == 2
    store.away = False
    assert exporter.flush()
    exporter.shutdown()
    assert read(reader)["agent_gateway.exporter.call.queue.size", None] == 0


def test_two_exporters_add_up(reader: InMemoryMetricReader):
    """Their counts add up, also if one of them is gone."""
    for names in ("ab", "cde"):
        exporter = Exporter(MemoryDestination())
        submit(exporter, names)
        assert exporter.flush()
        exporter.shutdown()
        del exporter
    assert read(reader)["agent_gateway.exporter.call.exported", None] == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_child_counts_from_zero(reader: InMemoryMetricReader):
    """The parent reports its own counts; a fork leaves no lock behind."""
    exporter = Exporter(MemoryDestination())
    submit(exporter, "abc")
    assert exporter.flush()
    process = metrics._process
    process.before_fork()
    process.after_fork_in_child()
    assert process.read(metrics.SUBMITTED) == []
    exporter.shutdown()


def test_what_goes_wrong_costs_no_call(
    reader: InMemoryMetricReader, guards_hold: None, monkeypatch: pytest.MonkeyPatch
):
    """If metrics raise, numbers are lost, but no mirrors and no threads of the exporter."""

    def fail(*arguments: Any) -> None:
        raise ValueError("canary")

    monkeypatch.setattr(metrics._Process, "add", fail)
    destination = MemoryDestination()
    exporter = Exporter(destination)
    submit(exporter, "ab")
    assert exporter.flush()
    exporter.shutdown()
    assert destination.names == ["gateway/a", "gateway/b"]


def test_counts_of_an_earlier_time_are_never_noted(reader: InMemoryMetricReader):
    """The counts are read under the lock, so the last values recorded are the latest."""
    meter = metrics.ExporterMeter(10)
    meter.note(lambda: Counts(submitted=3, sent=1, waiting=2, dropped={}))
    meter.note(lambda: Counts(submitted=3, sent=2, waiting=0, dropped={"refused": 1}))
    assert {key: value for key, value in read(reader).items() if value} == {
        ("agent_gateway.exporter.call.submitted", None): 3,
        ("agent_gateway.exporter.call.exported", None): 2,
        ("agent_gateway.exporter.call.exported", "refused"): 1,
        ("agent_gateway.exporter.call.queue.capacity", None): 10,
    }
