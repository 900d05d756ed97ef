"""`agent-gateway doctor`: every way to break the loop that it names, provoked."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner
from e2e.litellm_proxy import MASTER_KEY, LiteLLMProxy, configuration
from meddler import gateway_app, meddler, replacing, without
from served import Served

from agent_gateway_client import __version__
from agent_gateway_client.cli.app import app
from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.doctor.checks import Check, Settings
from agent_gateway_client.doctor.examine import examine
from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.call import TokenUsage, current_call
from agent_gateway_client.server.destinations import OtlpDestination, mlflow_tracking_server
from agent_gateway_client.server.export import Exporter

PATIENCE_S = 60.0
"""For what has to come."""
IMPATIENCE_S = 2.0
"""For what does not come."""
ALL = [
    "configuration", "gateway", "store", "span", "endpoint", "trace", "companion", "header", "exporter", "mirror",
    "parent", "tokens",
]  # fmt: skip
COMMAND = str(Path(sys.executable).parent / "agent-gateway")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets these for its process."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


def exporter_to(uri: str) -> Exporter:
    """Return an exporter as a gateway with MLFLOW_TRACKING_URI has it."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        return Exporter(mlflow_tracking_server())
    finally:
        mlflow.set_tracking_uri(before)


@contextmanager
def asgi_gateway(
    gateway: DemoGateway, *exporters: Exporter, change_answer: Callable[[dict[str, Any]], Any] = lambda answer: answer
) -> Iterator[str]:
    """A gateway that is not MLflow's; for each exporter it has the middleware once."""
    app = gateway_app(gateway.provider.url, change_answer)
    for exporter in exporters:
        app.add_middleware(GatewayTracingMiddleware, exporter=exporter)
    with Served(app) as url:
        yield url


def examined(gateway: DemoGateway, url: str = "", patience_s: float = PATIENCE_S, **more: Any) -> list[Check]:
    settings = Settings(url or gateway.gateway_url, "chat", gateway.tracking_uri, patience_s=patience_s)
    return examine(settings._replace(**more))


def broken(checks: list[Check]) -> Check:
    """Return the check that does not hold, after a look that it is the only one, and the last."""
    names = [check.name for check in checks]
    expected = ALL[: ALL.index(checks[-1].name) + 1]
    assert names == expected, checks
    assert [check.ok for check in checks] == [True] * (len(checks) - 1) + [False], checks
    assert all(check.detail and (check.ok == (not check.fix)) for check in checks)
    return checks[-1]


def test_all_is_well(gateway: DemoGateway):
    """The command, as a program runs it: one JSON object, and the exit status."""
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
    assert "s after the call" in details["mirror"]


def test_what_a_person_is_told(gateway: DemoGateway):
    """One line a check, what to do about the broken one, and the exit status."""
    command = ["doctor", "--gateway", gateway.gateway_url, "--tracking-uri", gateway.tracking_uri, "--model"]
    told = CliRunner().invoke(app, [*command, "chat"])
    assert (told.exit_code, told.output.splitlines()[-1]) == (0, "All links hold.")
    assert [line.split(":")[0].split()[-1] for line in told.output.splitlines()[:-1]] == ALL
    told = CliRunner().invoke(app, [*command, "nobody"])
    assert told.exit_code == 1
    assert "BROKEN  endpoint: The gateway answers" in told.output
    assert "What to do: Give --model" in told.output.splitlines()[-1]
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
    """And its password is not shown."""
    for uri in ("sqlite:///mlflow.db", "postgresql://me:secret@db/mlflow"):
        check = broken(examine(Settings("http://127.0.0.1:5000", "chat", uri)))
        assert check.name == "configuration"
        assert "is no server's" in check.detail
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
        ({"/version": (200, "<html>")}, "not as MLflow does", "--tracking-uri"),
        ({"/version": (401, "")}, "asks for credentials", "MLFLOW_TRACKING_USERNAME"),
        (
            {"/experiments/get-by-name": (401, "You are not authenticated.")},
            "asks for credentials",
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
    ("model", "status", "fix"), [("nobody", "4", "--model"), ("failing", "5", "Mend the endpoint")]
)
def test_an_endpoint_that_does_not_answer(model: str, status: str, fix: str, gateway: DemoGateway):
    check = broken(examined(gateway, model=model))
    assert check.name == "endpoint"
    assert f"The gateway answers {status}" in check.detail
    assert fix in check.fix


def test_a_trace_that_does_not_arrive(gateway: DemoGateway):
    """The agent may use the experiment, and not write traces."""
    refused = (403, '{"error_code": "PERMISSION_DENIED"}')
    with Served(meddler(gateway.tracking_uri, answers={"/v1/traces": refused, "/mlflow/traces": refused})) as uri:
        check = broken(examined(gateway, tracking_uri=uri, patience_s=IMPATIENCE_S))
    assert check.name == "trace"


OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("change", "said", "fix"),
    [
        (without("traceparent"), "reached the companion with no traceparent", "pass traceparent"),
        (replacing("traceparent", "none"), "1 traceparent headers, which together are invalid", "pass traceparent"),
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
    """It cannot be asked then, but the mirror shows that it is there."""
    with Served(meddler(gateway.tracking_uri, kept_back=frozenset({"agent-gateway-companion"}))) as url:
        checks = examined(gateway, f"{url}/gateway")
    assert [check.name for check in checks if check.ok] == [name for name in ALL if name != "header"]


def test_a_gateway_without_the_companion(gateway: DemoGateway):
    with asgi_gateway(gateway) as url:
        check = broken(examined(gateway, url, IMPATIENCE_S))
    assert check.name == "companion"
    assert "add_middleware(GatewayTracingMiddleware)" in check.fix


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoGateway]:
    """MLflow as it is."""
    with DemoGateway(None, directory=tmp_path_factory.mktemp("plain")) as gateway:
        yield gateway


def test_mlflow_without_the_companion(plain: DemoGateway):
    """MLflow's own mirror is lost in its default configuration, and the doctor says so."""
    *_, companion, own = checks = examined(plain, patience_s=IMPATIENCE_S)
    assert [check.name for check in checks] == [*ALL[: ALL.index("companion") + 1], "mlflow_mirror"]
    assert (companion.ok, own.ok) == (False, False)
    assert "--app-name agent-gateway" in companion.fix
    assert "MLflow's own mirror was lost, as it is by default" in own.detail


@pytest.mark.parametrize(
    ("status", "fix"),
    [(401, "MLFLOW_TRACKING_USERNAME"), (403, "write to the experiment"), (404, "AGENT_GATEWAY_EXPERIMENT_ID"),
     (501, "a database as its backend store")],
)  # fmt: skip
def test_a_store_that_refuses_the_mirrors(status: int, fix: str, gateway: DemoGateway):
    """Authentication, permission, an experiment or a path that is not there, a store of files."""
    with Served(meddler(gateway.tracking_uri, answers={"/v1/traces": (status, "No.")})) as uri:
        exporter = exporter_to(uri)
        with asgi_gateway(gateway, exporter) as url:
            check = broken(examined(gateway, url, IMPATIENCE_S))
            exporter.shutdown(0)
    assert check.name == "exporter"
    assert f"HTTP {status}" in check.detail
    assert fix in check.fix


def test_a_gateway_whose_store_is_away(gateway: DemoGateway):
    exporter = exporter_to("http://127.0.0.1:9")
    with asgi_gateway(gateway, exporter) as url:
        check = broken(examined(gateway, url, IMPATIENCE_S))
        exporter.shutdown(0)
    assert check.name == "exporter"
    assert "MLFLOW_TRACKING_URI" in check.fix


def test_a_gateway_that_writes_to_another_mlflow(gateway: DemoGateway, plain: DemoGateway):
    with asgi_gateway(gateway, exporter_to(plain.tracking_uri)) as url:
        check = broken(examined(gateway, url, IMPATIENCE_S))
    assert check.name == "mirror"
    assert "writes to another MLflow" in check.detail


def test_a_gateway_that_writes_to_a_collector(gateway: DemoGateway, monkeypatch: pytest.MonkeyPatch):
    """Which takes the spans, and does not hand them on to MLflow."""
    with Served(meddler(gateway.tracking_uri, answers={"/v1/traces": (200, "")})) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        exporter = Exporter(OtlpDestination())
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
        with asgi_gateway(gateway, exporter) as url:
            check = broken(examined(gateway, url, IMPATIENCE_S))
    assert check.name == "mirror"
    assert "by OTLP" in check.detail
    assert "AGENT_GATEWAY_EXPORTER" in check.fix


def test_a_companion_that_is_there_twice(gateway: DemoGateway):
    exporter = exporter_to(gateway.tracking_uri)
    with asgi_gateway(gateway, exporter, exporter) as url:
        check = broken(examined(gateway, url))
    assert (check.name, "2 mirrors" in check.detail, "once" in check.fix) == ("parent", True, True)


def test_a_gateway_that_hides_the_tokens(gateway: DemoGateway):
    with asgi_gateway(
        gateway, exporter_to(gateway.tracking_uri), change_answer=lambda answer: answer.pop("usage")
    ) as url:
        check = broken(examined(gateway, url, IMPATIENCE_S))
    assert (check.name, "says nothing of tokens" in check.detail) == ("tokens", True)


def test_a_gateway_that_counts_tokens_of_its_own(gateway: DemoGateway):
    def count(answer: Any) -> None:
        call = current_call.get()
        assert call is not None
        call.attempt(model="m").usage = TokenUsage(1000, 1000, 2000)

    with asgi_gateway(gateway, exporter_to(gateway.tracking_uri), change_answer=count) as url:
        check = broken(examined(gateway, url))
    assert check.name == "tokens"
    assert "the trace counts 2000" in check.detail


@pytest.fixture(scope="module")
def proxy(gateway: DemoGateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteLLMProxy]:
    config = configuration(gateway.provider.url)
    with LiteLLMProxy(tmp_path_factory.mktemp("litellm"), config, MLFLOW_TRACKING_URI=gateway.tracking_uri) as proxy:
        yield proxy


def test_litellm_proxy(proxy: LiteLLMProxy, gateway: DemoGateway):
    checks = examined(gateway, proxy.url, api_key=MASTER_KEY)
    assert [check.name for check in checks if check.ok] == ALL, checks


def test_litellm_proxy_without_its_key(proxy: LiteLLMProxy, gateway: DemoGateway):
    check = broken(examined(gateway, proxy.url))
    assert check.name == "endpoint"
    assert "--api-key" in check.fix


def test_litellm_proxy_whose_companion_is_not_heard_of(proxy: LiteLLMProxy, gateway: DemoGateway):
    """As if it had none: what comes from it is kept back, and it makes no mirror. The fix is LiteLLM's."""
    hiding = meddler(proxy.url, change=without("traceparent"), kept_back=frozenset({"agent-gateway-companion"}))
    with Served(hiding) as url:
        check = broken(examined(gateway, url, IMPATIENCE_S, api_key=MASTER_KEY))
    assert check.name == "companion"
    assert "litellm_settings" in check.fix
