"""`agent-gateway doctor`: each fault that precedes the gateway's companion, provoked."""

import json
import os
import socket
import subprocess
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner

from agent_gateway_client import __version__
from agent_gateway_client.cli.app import app
from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.doctor.checks import Settings
from agent_gateway_client.doctor.examine import examine
from tests.support.doctor import ALL, COMMAND, IMPATIENCE_S, broken, examined
from tests.support.meddler import meddler, replacing, without
from tests.support.served import Served


def test_all_is_well(gateway: DemoGateway):
    """The command as a program: one JSON object, and the exit status."""
    command = [COMMAND, "doctor", "--gateway", gateway.gateway_url, "--model", "chat"]
    env = {**os.environ, "MLFLOW_TRACKING_URI": gateway.tracking_uri}
    told = subprocess.run([*command, "--json"], env=env, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stdout + told.stderr
    report = json.loads(told.stdout)
    assert report["ok"] is True
    assert [(check["name"], check["ok"], check["fix"]) for check in report["checks"]] == [
        (name, True, "") for name in ALL
    ]
    details = {check["name"]: check["detail"] for check in report["checks"]}
    assert f"agent-gateway-client {__version__}" in details["companion"]
    assert "s of the call" in details["mirror"]
    assert "mlflow.flush_trace_async_logging()" in details["trace"]


def test_what_a_person_is_told(gateway: DemoGateway):
    """One line per check, the remedy for the failed one, and the exit status."""
    command = ["doctor", "--gateway", gateway.gateway_url, "--tracking-uri", gateway.tracking_uri, "--model"]
    told = CliRunner().invoke(app, [*command, "chat"])
    assert (told.exit_code, told.output.splitlines()[-1]) == (0, "All links hold.")
    assert [line.split(":")[0].split()[-1] for line in told.output.splitlines()[:-1]] == ALL
    told = CliRunner().invoke(app, [*command, "nobody"])
    assert told.exit_code == 1
    assert "BROKEN  endpoint: The gateway answers" in told.output
    assert "What to do: Set --model" in told.output.splitlines()[-1]
    told = CliRunner().invoke(app, [*command[:3], "--model", "chat"], env={"MLFLOW_TRACKING_URI": None})
    assert (told.exit_code, "Give --tracking-uri" in told.output) == (2, True)


@pytest.mark.parametrize(
    "path", ["", "/gateway", "/gateway/mlflow/v1", "/gateway/openai/v1", "/gateway/mlflow/v1/chat/completions"]
)
def test_urls_that_people_know_a_gateway_by(path: str, gateway: DemoGateway):
    checks = examined(gateway, gateway.tracking_uri + path)
    assert [check.name for check in checks if check.ok] == ALL, checks


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:5000", "scheme"),
        ("https://api.openai.com/v1", "a model vendor's public API"),
        ("http://", "no host"),
    ],
)
def test_a_url_that_cannot_work(url: str, said: str):
    checks = examine(Settings(url, "chat", "http://127.0.0.1:5000"))
    assert broken(checks).name == "configuration"
    assert said in checks[-1].detail


def test_a_tracking_uri_that_no_gateway_can_write_to():
    """The password in the URI is not shown."""
    for uri in ("sqlite:///mlflow.db", "postgresql://me:secret@db/mlflow"):
        check = broken(examine(Settings("http://127.0.0.1:5000", "chat", uri)))
        assert check.name == "configuration"
        assert "is not a server's" in check.detail
        assert "secret" not in check.detail


def test_a_variable_that_sends_the_agents_spans_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4318/v1/traces")
    check = broken(examine(Settings("http://127.0.0.1:5000", "chat", "http://127.0.0.1:5000")))
    assert check.name == "configuration"
    assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set" in check.detail


def test_a_gateway_that_is_not_there(gateway: DemoGateway):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    check = broken(examined(gateway, f"http://127.0.0.1:{port}/gateway"))
    assert (check.name, "ConnectError" in check.detail) == ("gateway", True)


def test_a_gateway_without_the_route(gateway: DemoGateway):
    check = broken(examined(gateway, f"{gateway.tracking_uri}/elsewhere"))
    assert check.name == "gateway"
    assert "/elsewhere/v1/chat/completions" in check.detail
    assert "base_url" in check.fix


def test_a_store_that_is_not_there(gateway: DemoGateway):
    check = broken(examined(gateway, tracking_uri="http://127.0.0.1:9"))
    assert (check.name, "ConnectError" in check.detail) == ("store", True)


@pytest.mark.parametrize(
    ("answers", "said", "fix"),
    [
        ({"/version": (200, "2.22.1")}, "MLflow 2.22.1, which is too old", "Upgrade the server to MLflow 3.15"),
        ({"/version": (200, "<html>")}, "is not MLflow", "--tracking-uri"),
        ({"/version": (401, "")}, "requires credentials", "MLFLOW_TRACKING_USERNAME"),
        (
            {"/experiments/get-by-name": (401, "You are not authenticated.")},
            "requires credentials",
            "MLFLOW_TRACKING_USERNAME",
        ),
        (
            {"/experiments/get-by-name": (403, '{"error_code": "PERMISSION_DENIED"}')},
            "cannot be used: PERMISSION_DENIED",
            "--experiment",
        ),
    ],
    ids=["too old", "another server", "guarded", "guarded by MLflow", "not permitted"],
)
def test_a_store_that_does_not_take_traces(answers: Any, said: str, fix: str, gateway: DemoGateway):
    with Served(meddler(gateway.tracking_uri, answers=answers)) as uri:
        check = broken(examined(gateway, tracking_uri=uri))
    assert check.name == "store"
    assert said in check.detail
    assert fix in check.fix


def test_a_deleted_experiment(gateway: DemoGateway, tracing: str):
    mlflow.delete_experiment(mlflow.create_experiment("deleted"))
    check = broken(examined(gateway, experiment="deleted"))
    assert (check.name, "'deleted'" in check.detail, "--experiment" in check.fix) == ("store", True, True)


def test_a_span_that_is_not_sampled(gateway: DemoGateway, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACE_SAMPLING_RATIO", "0")
    mlflow.tracing.reset()
    try:
        check = broken(examined(gateway))
    finally:
        monkeypatch.undo()
        mlflow.tracing.reset()
    assert check.name == "span"
    assert "MLFLOW_TRACE_SAMPLING_RATIO" in check.fix


def test_tracing_that_is_switched_off(gateway: DemoGateway):
    mlflow.tracing.disable()
    try:
        check = broken(examined(gateway))
    finally:
        mlflow.tracing.enable()
    assert check.name == "span"
    assert "mlflow.tracing.disable()" in check.fix


@pytest.mark.parametrize(
    ("model", "status", "fix"), [("nobody", "4", "--model"), ("failing", "5", "provider, key and quota")]
)
def test_an_endpoint_that_does_not_answer(model: str, status: str, fix: str, gateway: DemoGateway):
    check = broken(examined(gateway, model=model))
    assert check.name == "endpoint"
    assert f"The gateway answers {status}" in check.detail
    assert fix in check.fix


def test_a_trace_that_does_not_arrive(gateway: DemoGateway):
    """The agent may use the experiment, but not write traces."""
    refused = (403, '{"error_code": "PERMISSION_DENIED"}')
    with Served(meddler(gateway.tracking_uri, answers={"/v1/traces": refused, "/mlflow/traces": refused})) as uri:
        check = broken(examined(gateway, tracking_uri=uri, patience_s=IMPATIENCE_S))
    assert check.name == "trace"


OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("change", "said", "fix"),
    [
        (without("traceparent"), "reached the companion with no traceparent", "forward traceparent"),
        (replacing("traceparent", "none"), "1 traceparent headers, which together are invalid", "forward traceparent"),
        (replacing("traceparent", OTHER), f"reached the companion with {OTHER}", "replaces the header"),
    ],
    ids=["stripped", "broken", "replaced"],
)
def test_a_proxy_that_meddles_with_the_header(change: Any, said: str, fix: str, gateway: DemoGateway):
    with Served(meddler(gateway.tracking_uri, change=change)) as url:
        check = broken(examined(gateway, f"{url}/gateway"))
    assert check.name == "header"
    assert said in check.detail
    assert fix in check.fix


def test_a_proxy_that_makes_the_trace_unsampled(gateway: DemoGateway):
    def unsampled(headers: Any) -> Any:
        return [(name, value[:-2] + "00" if name == "traceparent" else value) for name, value in headers]

    with Served(meddler(gateway.tracking_uri, change=unsampled)) as url:
        check = broken(examined(gateway, f"{url}/gateway"))
    assert (check.name, "not sampled" in check.detail) == ("header", True)


def test_a_proxy_that_keeps_the_companions_answer_back(gateway: DemoGateway):
    """The companion's answer is missing then, but the mirror shows that it is there."""
    with Served(meddler(gateway.tracking_uri, kept_back=frozenset({"agent-gateway-companion"}))) as url:
        checks = examined(gateway, f"{url}/gateway")
    assert [check.name for check in checks if check.ok] == [name for name in ALL if name != "header"]
