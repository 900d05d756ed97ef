"""observed/prometheus.py: the page, in separate processes because prometheus_client has one registry per process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent_gateway_client.server.export import Reason

prometheus_client = pytest.importorskip("prometheus_client")

DEPLOY = Path(__file__).parents[3] / "deploy"

WORKER = """
import os, sys
from prometheus_client import Counter
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.observed import prometheus
from tests.support.server import MemoryDestination, Store, submit

away = Store(away="wait" in sys.argv[2:], rejected=("x",))
exporter = Exporter(MemoryDestination(away))
submit(exporter, sys.argv[1])
exporter.flush(1.0 if away.away else 60.0)
Counter("hosts_own", "Something of the gateway's").inc()
print(prometheus.page()[1].decode())
sys.stdout.flush()
if "stay" in sys.argv:
    input()
os._exit(0)
"""


def start_worker(directory: Path | None, *arguments: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    if directory is not None:
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    root = Path(__file__).parents[3]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [environment.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def values(page: str) -> dict[str, float]:
    """Return the values that are not zero, except those of buckets and times."""
    lines = [line.rpartition(" ") for line in page.splitlines() if line and not line.startswith("#")]
    found = {name: float(value) for name, _, value in lines}
    return {
        name: value for name, value in found.items() if value and not name.rpartition("_")[2].startswith(("b", "sum"))
    }


def page_of(directory: Path | None, *arguments: str) -> dict[str, float]:
    worker = start_worker(directory, *arguments)
    page, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0
    return values(page)


def test_one_worker():
    """The page has our metrics and none of the gateway's own."""
    page = page_of(None, "abcx")
    page.pop("agent_gateway_exporter_call_delay_seconds_created", None)
    assert {
        name: value for name, value in page.items() if not name.endswith("_created") and "_created{" not in name
    } == {
        "agent_gateway_exporter_call_submitted_total": 4,
        'agent_gateway_exporter_call_exported_total{error_type=""}': 3,
        'agent_gateway_exporter_call_exported_total{error_type="refused"}': 1,
        "agent_gateway_exporter_call_queue_capacity": 10_000,
        "agent_gateway_exporter_call_delay_seconds_count": 3,
    }


BEFORE_THE_FIRST_CALL = """
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.observed import prometheus
from agent_gateway_client.server.observed.companion import Companion
from tests.support.server import MemoryDestination

Companion(Exporter(MemoryDestination())).start()
print(prometheus.page()[1].decode())
"""


def test_every_reason_is_there_before_the_first_call():
    """Each reason starts at 0, so that ``increase()`` sees the first dropped call."""
    root = Path(__file__).parents[3]
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-c", BEFORE_THE_FIRST_CALL]
    page = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    series = dict(
        re.findall(r'^agent_gateway_exporter_call_exported_total\{error_type="(\w*)"\} (\S+)$', page, re.MULTILINE)
    )
    assert series == dict.fromkeys(("", *(reason.value for reason in Reason)), "0.0")


def test_two_workers_add_up(tmp_path: Path):
    """The directory is created. Each worker answers for both; calls that waited in an ended worker are not counted."""
    tmp_path /= "metrics"
    assert page_of(tmp_path, "ab", "wait")["agent_gateway_exporter_call_queue_size"] == 2
    staying = start_worker(tmp_path, "abc", "wait", "stay")
    assert staying.stdout is not None
    try:
        for line in staying.stdout:
            if line.startswith("agent_gateway_exporter_call_queue_size"):
                assert line.split()[1] == "3.0"
                break
        page = page_of(tmp_path, "abcd")
    finally:
        staying.communicate("\n", timeout=120)
    assert page == {
        "agent_gateway_exporter_call_submitted_total": 9,
        'agent_gateway_exporter_call_exported_total{error_type=""}': 4,
        "agent_gateway_exporter_call_queue_size": 3,
        "agent_gateway_exporter_call_queue_capacity": 20_000,
        "agent_gateway_exporter_call_delay_seconds_count": 4,
    }


def test_the_dashboard_and_the_alerts_ask_for_what_there_is():
    """Each query in deploy/ uses metrics and labels that a gateway's page has."""
    worker = start_worker(None, "abx")
    page, _ = worker.communicate(timeout=120)
    names = {line.split(" ")[0].partition("{")[0] for line in page.splitlines() if line and not line.startswith("#")}
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    (group,) = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    queries += [rule["expr"] for rule in group["rules"]]
    asked = {name for query in queries for name in re.findall(r"agent_gateway_\w+", query)}
    assert asked - names == set()
    # No metric of ours is missing, except those that Prometheus derives from a histogram.
    made = {name for name in names if not name.endswith(("_created", "_sum", "_count"))}
    assert made - asked == set()
    labels = {name for query in queries for name in re.findall(r"[{,(] ?(\w+)(?:!?=~?\")", query)}
    assert labels <= {"job", "error_type"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
