"""running.py: the demo gateway that a notebook starts with one call."""

import pytest

from agent_gateway_client import demo
from agent_gateway_client.demo import gateway as demo_gateway
from agent_gateway_client.demo import running
from agent_gateway_client.errors import ConfigurationError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has started none, and may not start one here."""
    monkeypatch.setattr(running, "_running", None)
    monkeypatch.setattr(demo_gateway.DemoGateway, "start", lambda self: pytest.fail("a gateway was started"))


def test_one_that_is_running_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Its addresses are those of a gateway of one's own, and it is told where it is."""
    monkeypatch.setenv("AGENT_GATEWAY_DEMO", "http://127.0.0.1:5000/, http://127.0.0.1:6000")
    gateway = demo.start_gateway()
    assert gateway == ("http://127.0.0.1:5000", "http://127.0.0.1:6000")
    assert gateway.openai_base_url == "http://127.0.0.1:5000/gateway/openai/v1"
    assert capsys.readouterr().out == "MLflow and its gateway are at http://127.0.0.1:5000\n"
    monkeypatch.delenv("AGENT_GATEWAY_DEMO")
    assert demo.start_gateway() is gateway


@pytest.mark.parametrize("value", ["http://127.0.0.1:5000", "5000,6000", "http://a,http://b,http://c"])
def test_a_value_that_cannot_work(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AGENT_GATEWAY_DEMO", value)
    with pytest.raises(ConfigurationError, match="AGENT_GATEWAY_DEMO"):
        demo.start_gateway()
