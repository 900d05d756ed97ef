"""An MLflow gateway with several workers: the metrics of any worker add up to the calls made."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
import yaml

from agent_gateway_client import trace_headers
from agent_gateway_client.demo._port import Reservation
from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import CHAT, tracing_into, wait_for
from tests.support.server import DEADLINE_S
from tests.support.workers import gateway_with_workers

EXPORTED = 'agent_gateway_exporter_call_exported_total{error_type=""}'

parser = pytest.importorskip("prometheus_client.parser")

DEPLOY = Path(__file__).parents[2] / "deploy"
WORKERS = 2
CALLS = 40
AT_ONCE = 4


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoGateway]:
    directory = tmp_path_factory.mktemp("watched")
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics"), "AGENT_GATEWAY_WARM_UP": "1"}
    with (
        gateway_with_workers(WORKERS, directory=directory, env=environment) as gateway,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.delenv("AGENT_GATEWAY_URLS", raising=False)
        with tracing_into(gateway):
            yield gateway


def metrics(gateway: DemoGateway) -> dict[str, float]:
    """Scrape once, over a separate connection; returns the sums by name, with one for all dropped calls."""
    answer = httpx.get(f"{gateway.tracking_uri}/agent-gateway/metrics", timeout=DEADLINE_S)
    assert answer.status_code == 200
    found: dict[str, float] = {}
    for family in parser.text_string_to_metric_families(answer.text):
        assert family.name.startswith("agent_gateway_")
        for sample in family.samples:
            dropped = "_dropped" if sample.labels.get("error_type") else ""
            name = sample.name.removeprefix("agent_gateway_exporter_") + dropped
            found[name] = found.get(name, 0.0) + sample.value
    return found


def statuses(gateway: DemoGateway) -> dict[int, dict[str, Any]]:
    """Ask until each worker has answered for itself."""
    found: dict[int, dict[str, Any]] = {}
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < WORKERS and time.monotonic() < deadline:
        told = httpx.get(f"{gateway.tracking_uri}/agent-gateway/status", timeout=DEADLINE_S).json()
        found[told["pid"]] = told
    return found


def call(gateway: DemoGateway) -> int:
    with mlflow.start_span("agent"):
        url = f"{gateway.openai_base_url}/chat/completions"
        headers = trace_headers(url, gateways=[gateway.gateway_url])
        assert "traceparent" in headers
        # A separate connection for each, so that every worker gets some.
        return httpx.post(url, json={"model": "chat", **CHAT}, headers=headers, timeout=DEADLINE_S).status_code


def test_metrics_add_up_to_the_calls_made(watched: DemoGateway):
    """Whichever worker is scraped, during the calls and once all is stored; the workers' statuses add up too."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        calls = [threads.submit(call, watched) for _ in range(CALLS)]
        last = 0.0
        while not all(one.done() for one in calls):
            seen = metrics(watched)
            done = seen.get("call_exported_total", 0) + seen.get("call_exported_total_dropped", 0)
            assert last <= done <= seen["call_submitted_total"] <= CALLS
            last = done
            time.sleep(0.2)
    assert {one.result() for one in calls} == {200}
    mlflow.flush_trace_async_logging()
    deadline = time.monotonic() + DEADLINE_S
    while (seen := metrics(watched))["call_exported_total"] < CALLS and time.monotonic() < deadline:
        time.sleep(0.2)
    found = statuses(watched)
    assert seen["call_submitted_total"] == seen["call_exported_total"] == CALLS, (seen, found)
    assert seen["call_delay_seconds_count"] == CALLS
    assert (seen["call_queue_size"], seen["call_queue_capacity"]) == (0, WORKERS * 10_000)
    assert sum(told["sent"] for told in found.values()) == CALLS
    assert all(told["sent"] for told in found.values()), found


def test_each_worker_says_what_it_is(watched: DemoGateway):
    """One line each, in uvicorn's format, with the worker's name as in its status."""
    lines = [line for line in watched.log_path.read_text().splitlines() if "calls are mirrored to" in line]
    assert len(lines) == WORKERS
    assert all("INFO: " in line for line in lines)
    assert {int(line.rpartition("[")[2].rstrip("]")) for line in lines} == set(statuses(watched))


@pytest.fixture
def prometheus(watched: DemoGateway, tmp_path: Path) -> Iterator[httpx.Client]:
    """A real Prometheus with the configuration and rules of deploy/ that scrapes the gateway; yields its HTTP API."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed")
    configuration = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    (scrape,) = configuration["scrape_configs"]
    scrape["static_configs"] = [{"targets": [watched.tracking_uri.removeprefix("http://")]}]
    scrape["scrape_interval"] = "1s"
    configuration["global"] = {"evaluation_interval": "1s"}
    configuration["rule_files"] = [str(DEPLOY / "alerts.yaml")]
    file = tmp_path / "prometheus.yaml"
    file.write_text(yaml.safe_dump(configuration))
    reserved = Reservation()
    address = f"127.0.0.1:{reserved.port}"
    options = [f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"]
    log = tmp_path / "prometheus.log"
    with log.open("w") as output, subprocess.Popen([program, *options], stderr=output) as process:
        try:
            with httpx.Client(base_url=f"http://{address}/api/v1", timeout=DEADLINE_S) as client:
                yield client
        finally:
            process.terminate()
            reserved.release()
            print(log.read_text())


def ask(prometheus: httpx.Client, query: str) -> list[dict[str, Any]]:
    """Evaluate a query; the result is empty while Prometheus starts."""
    try:
        answer = prometheus.get("/query", params={"query": query}).json()
    except httpx.TransportError:
        return []
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def alerts(prometheus: httpx.Client) -> dict[str, str]:
    """Return the state of each alert by its name."""
    (group,) = prometheus.get("/rules").json()["data"]["groups"]
    return {rule["name"]: rule["state"] for rule in group["rules"]}


def test_a_real_prometheus_answers_the_dashboard(watched: DemoGateway, prometheus: httpx.Client):
    """Every query has data after several scrapes with calls in between, and the alert rules are evaluated."""
    deadline = time.monotonic() + DEADLINE_S
    calls = f"{EXPORTED}[1m]"
    while not any(float(one["value"][1]) > 0 for one in ask(prometheus, f"increase({calls})")):
        assert time.monotonic() < deadline
        assert call(watched) == 200
        mlflow.flush_trace_async_logging()
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$job", ".*").replace("$__rate_interval", "1m")
            assert ask(prometheus, query), (panel["title"], query)
    names = {rule["alert"] for rule in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]}
    assert set(alerts(prometheus)) == names
    # Evaluated before the first call was stored, AgentGatewayMirrorsWait is pending.
    wait_for("inactive alerts", lambda: set(alerts(prometheus).values()) == {"inactive"})
