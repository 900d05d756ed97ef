"""`agent-gateway doctor --relay`: each fault that keeps a real relay from mirroring calls, provoked."""

import json
import secrets
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_gateway_client.cli.app import app
from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.doctor.checks import Check
from agent_gateway_client.doctor.relay import examine_relay
from tests.support.doctor import COMMAND, IMPATIENCE_S, asgi_gateway, examined
from tests.support.e2e import begun, wait_for
from tests.support.litellm_proxy import MASTER_KEY
from tests.support.otlp_spans import attempt, protobuf_body, root
from tests.support.relay import OtelProxy, RelayProcess, relay

TOKEN = "a-token-of-the-tests"
ALONE = ["relay", "relay_token", "relay_spans", "relay_mirrors"]
WITH_GATEWAY = [
    "configuration", "gateway", "store", "relay", "relay_token", "relay_mirrors", "span", "endpoint", "trace",
    "relay_spans", "mirror", "parent", "tokens",
]  # fmt: skip
NOWHERE = "http://127.0.0.1:9"
RELAYS: dict[str, Callable[[DemoGateway], dict[str, str]]] = {
    "MLflow": lambda gateway: {"MLFLOW_TRACKING_URI": gateway.tracking_uri},
    "MLflow, impatient": lambda gateway: {
        "MLFLOW_TRACKING_URI": gateway.tracking_uri,
        "AGENT_GATEWAY_WAIT_SECONDS": "1",
    },
    "nowhere": lambda gateway: {"MLFLOW_TRACKING_URI": NOWHERE},
}
"""The variables of relays, by their destination."""


def call_of(trace_id: str) -> list[Span]:
    """Return a gateway's spans for a call in a trace."""
    trace = int(trace_id, 16)
    return [root(trace=trace), attempt(2, trace=trace)]


def send(to: RelayProcess, spans: Sequence[Span], headers: Mapping[str, str] | None = None) -> int:
    """Send spans like a gateway."""
    told = {"content-type": "application/x-protobuf", **(headers or {})}
    return httpx.post(to.url, content=protobuf_body(spans), headers=told, trust_env=False).status_code


def broken(checks: list[Check], names: list[str] = ALONE) -> Check:
    """Return the failed check, after asserting that it is the only one, and the last."""
    assert [check.name for check in checks] == names[: len(checks)], checks
    assert [check.ok for check in checks] == [True] * (len(checks) - 1) + [False], checks
    assert checks[-1].detail
    assert checks[-1].fix
    return checks[-1]


def alone(url: str, patience_s: float = IMPATIENCE_S) -> list[Check]:
    return examine_relay(url, patience_s, lambda check: None)


def test_no_relay():
    check = broken(alone(NOWHERE))
    assert check.name == "relay"
    assert "agent-gateway relay" in check.fix


def test_something_else(gateway: DemoGateway):
    """MLflow has a page with that name."""
    check = broken(alone(gateway.tracking_uri))
    assert (check.name, "is not a relay" in check.detail) == ("relay", True)


def test_a_token(monkeypatch: pytest.MonkeyPatch):
    """Without a token, with a wrong one, and with the right one; no text contains it."""
    monkeypatch.delenv("AGENT_GATEWAY_RELAY_TOKEN", raising=False)
    with relay(MLFLOW_TRACKING_URI=NOWHERE, AGENT_GATEWAY_RELAY_TOKEN=TOKEN) as running:
        missing = broken(alone(running.url))
        monkeypatch.setenv("AGENT_GATEWAY_RELAY_TOKEN", "another-token-of-the-tests")
        wrong = broken(alone(running.url))
        monkeypatch.setenv("AGENT_GATEWAY_RELAY_TOKEN", TOKEN)
        right = alone(running.url)
    assert (missing.name, "requires a token" in missing.detail) == ("relay_token", True)
    assert (wrong.name, "rejects the token" in wrong.detail) == ("relay_token", True)
    assert "OTEL_EXPORTER_OTLP_HEADERS" in missing.fix
    assert [check.name for check in right if check.ok] == ALONE
    assert "2 requests had no token, or a wrong one." in right[2].detail
    assert TOKEN not in str((missing, wrong, *right))


def test_spans_that_are_no_calls():
    with relay(MLFLOW_TRACKING_URI=NOWHERE) as running:
        assert send(running, [root(attributes={"http.route": "/v1/chat/completions"})]) == 200
        check = broken(alone(running.url))
    assert (check.name, "none of 1 is a model call" in check.detail) == ("relay_spans", True)
    assert "gen_ai.*" in check.fix


@pytest.mark.parametrize(
    ("writes_to", "said", "fix"),
    [
        ("MLflow", "1 calls are waiting for their agents' traces", "the MLflow server that the relay writes to"),
        ("MLflow, impatient", "1 dropped because the store never received", "the MLflow server that the relay"),
        ("nowhere", "cannot send its mirrors to MLflow at http://127.0.0.1:9", "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_call_that_is_not_mirrored(writes_to: str, said: str, fix: str, gateway: DemoGateway):
    """It waits for a trace that never appears, is given up, or its store is down."""
    with relay(**RELAYS[writes_to](gateway)) as running:
        assert send(running, call_of(secrets.token_hex(16))) == 200

        def settled() -> Any:
            status = running.status()
            return status["dropped"] or (status["waiting"] and (writes_to == "MLflow" or status["problem"]))

        wait_for("the relay to notice", settled)
        check = broken(alone(running.url))
    assert check.name == "relay_mirrors"
    assert said in check.detail
    assert fix in check.fix


def test_a_relay_that_is_well(gateway: DemoGateway, tracing: str):
    """The command as a program: with and without /v1/traces, one JSON object, and the exit status."""
    with relay(MLFLOW_TRACKING_URI=gateway.tracking_uri) as running:
        assert send(running, call_of(begun(secrets.token_hex(16)))) == 200
        wait_for("the mirror", lambda: running.status()["sent"])
        for url in (running.url, running.url.removesuffix("/v1/traces")):
            told = subprocess.run(
                [COMMAND, "doctor", "--relay", url, "--json"], capture_output=True, text=True, timeout=300
            )
            report = json.loads(told.stdout)
            assert (told.returncode, report["ok"]) == (0, True), told.stdout
            assert [check["name"] for check in report["checks"]] == ALONE
    assert report["checks"][2]["detail"] == "1 spans are model calls, 1 are others of the gateways."
    assert "1 calls are mirrored to MLflow at" in report["checks"][3]["detail"]


def test_a_gateway_whose_spans_go_to_a_relay(gateway: DemoGateway, litellm_otel: Callable[[str], OtelProxy]):
    """The gateway runs without this package; the probe's mirror arrives through the relay."""
    proxy = litellm_otel("v2")
    checks = examined(gateway, proxy.column.url, api_key=MASTER_KEY, relay=proxy.relay.url)
    assert [check.name for check in checks if check.ok] == WITH_GATEWAY, checks


def test_a_gateway_without_spans(gateway: DemoGateway):
    """The gateway is not traced, or sends its spans elsewhere."""
    with relay(MLFLOW_TRACKING_URI=gateway.tracking_uri) as running, asgi_gateway(gateway) as url:
        check = broken(examined(gateway, url, IMPATIENCE_S, relay=running.url), WITH_GATEWAY)
    assert (check.name, check.detail) == ("relay_spans", "No span of the gateway reached the relay.")
    assert f"OTEL_EXPORTER_OTLP_ENDPOINT={running.url.removesuffix('/v1/traces')}" in check.fix


def test_options_that_do_not_go_together():
    told = CliRunner().invoke(app, ["doctor", "--relay", NOWHERE, "--", "python", "agent.py"])
    assert (told.exit_code, "or alone" in told.output) == (2, True)
    told = CliRunner().invoke(app, ["doctor", "--relay", NOWHERE, "--model", "chat"])
    assert (told.exit_code, "Missing option '--gateway'" in told.output) == (2, True)
