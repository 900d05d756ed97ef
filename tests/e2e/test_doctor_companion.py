"""`agent-gateway doctor`: a companion that is missing, cannot write, or writes too much, each provoked."""

from typing import Any

import pytest

from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.server.call import TokenUsage, current_call
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.export.otlp import OtlpDestination
from tests.support.doctor import ALL, IMPATIENCE_S, asgi_gateway, broken, examined, exporter_to
from tests.support.litellm_proxy import MASTER_KEY, LiteLLMProxy
from tests.support.meddler import meddler, without
from tests.support.served import Served
from tests.support.server import plain_call


def test_a_gateway_without_the_companion(gateway: DemoGateway):
    with asgi_gateway(gateway) as url:
        check = broken(examined(gateway, url, IMPATIENCE_S))
    assert check.name == "companion"
    assert "add_middleware(GatewayTracingMiddleware)" in check.fix


def test_mlflow_without_the_companion(plain: DemoGateway):
    """MLflow's own mirror is lost in its default configuration, and the doctor reports it."""
    *_, companion, own = checks = examined(plain, patience_s=IMPATIENCE_S)
    assert [check.name for check in checks] == [*ALL[: ALL.index("companion") + 1], "mlflow_mirror"]
    assert (companion.ok, own.ok) == (False, False)
    assert "--app-name agent-gateway" in companion.fix
    assert "MLflow's own mirror was lost, as it is by default" in own.detail


@pytest.mark.parametrize(
    ("status", "fix"),
    [(401, "MLFLOW_TRACKING_USERNAME"), (403, "write access to the experiment"), (404, "MLFLOW_TRACKING_URI"),
     (501, "a database as the backend store")],
)  # fmt: skip
def test_a_store_that_refuses_the_mirrors(status: int, fix: str, gateway: DemoGateway):
    """Authentication, permission, a missing experiment or path, and a file store."""
    with Served(meddler(gateway.tracking_uri, answers={"/v1/traces": (status, "No.")})) as uri:
        exporter = exporter_to(uri)
        with asgi_gateway(gateway, exporter) as url:
            check = broken(examined(gateway, url))
            exporter.shutdown(0)
    assert check.name == "exporter"
    assert f"HTTP {status}" in check.detail
    assert fix in check.fix


def test_a_gateway_whose_store_is_away(gateway: DemoGateway):
    exporter = exporter_to("http://127.0.0.1:9")
    with asgi_gateway(gateway, exporter) as url:
        check = broken(examined(gateway, url))
        exporter.shutdown(0)
    assert check.name == "exporter"
    assert "MLFLOW_TRACKING_URI" in check.fix


def test_trouble_is_found_without_a_call_of_the_model(gateway: DemoGateway, monkeypatch: pytest.MonkeyPatch):
    """If the companion's status shows waiting mirrors, the doctor does not send the probe, which costs tokens."""
    monkeypatch.setenv("AGENT_GATEWAY_STATUS_TOKEN", "a-token-of-the-tests")
    exporter = exporter_to("http://127.0.0.1:9")
    exporter.submit(plain_call())
    with asgi_gateway(gateway, exporter) as url:
        checks = examined(gateway, f"{url}/v1")
        exporter.shutdown(0)
    assert [check.name for check in checks] == [*ALL[: ALL.index("span")], "exporter"]
    assert "MLflow at http://127.0.0.1:9" in checks[1].detail
    assert "Calls that wait: 1. No probe call was sent." in checks[-1].detail
    assert "MLFLOW_TRACKING_URI" in checks[-1].fix


def test_a_gateway_that_writes_to_another_mlflow(gateway: DemoGateway, plain: DemoGateway):
    with asgi_gateway(gateway, exporter_to(plain.tracking_uri)) as url:
        check = broken(examined(gateway, url, IMPATIENCE_S))
    assert check.name == "mirror"
    assert "writes to another MLflow server" in check.detail


def test_a_gateway_that_writes_to_a_collector(gateway: DemoGateway, monkeypatch: pytest.MonkeyPatch):
    """The collector accepts the spans, but does not forward them to MLflow."""
    with Served(meddler(gateway.tracking_uri, answers={"/v1/traces": (200, "")})) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        exporter = Exporter(OtlpDestination())
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
        with asgi_gateway(gateway, exporter) as url:
            check = broken(examined(gateway, url, IMPATIENCE_S))
    assert check.name == "mirror"
    assert "over OTLP" in check.detail
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
        check = broken(examined(gateway, url))
    assert (check.name, "has no token usage" in check.detail) == ("tokens", True)


def test_a_gateway_that_counts_tokens_of_its_own(gateway: DemoGateway):
    def count(answer: Any) -> None:
        call = current_call.get()
        assert call is not None
        call.attempt(model="m").usage = TokenUsage(1000, 1000, 2000)

    with asgi_gateway(gateway, exporter_to(gateway.tracking_uri), change_answer=count) as url:
        check = broken(examined(gateway, url))
    assert check.name == "tokens"
    assert "the trace counts 2000" in check.detail


def test_litellm_proxy(litellm_proxy: LiteLLMProxy, gateway: DemoGateway):
    checks = examined(gateway, litellm_proxy.url, api_key=MASTER_KEY)
    assert [check.name for check in checks if check.ok] == ALL, checks


def test_litellm_proxy_without_its_key(litellm_proxy: LiteLLMProxy, gateway: DemoGateway):
    check = broken(examined(gateway, litellm_proxy.url))
    assert check.name == "endpoint"
    assert "--api-key" in check.fix


def test_litellm_proxy_whose_companion_is_not_heard_of(litellm_proxy: LiteLLMProxy, gateway: DemoGateway):
    """Like a missing companion: the response headers are removed, and there is no mirror. The fix is LiteLLM's."""
    hiding = meddler(litellm_proxy.url, change=without("traceparent"), kept_back=frozenset({"agent-gateway-companion"}))
    with Served(hiding) as url:
        check = broken(examined(gateway, url, IMPATIENCE_S, api_key=MASTER_KEY))
    assert check.name == "companion"
    assert "litellm_settings" in check.fix
