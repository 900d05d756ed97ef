"""observed/companion.py: the first log line, in the host's format, and the warm-up."""

import logging
import os
import threading
from typing import Any

import pytest

from agent_gateway_client import __version__
from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.observed.companion import Companion
from tests.support.server import DEADLINE_S, MemoryDestination, submit


def may_join(scope: Any) -> bool:
    return True


class ByEmail:
    def __call__(self, scope: Any) -> bool:
        return True


def line_of(caplog: pytest.LogCaptureFixture, name: str = "agent_gateway_client") -> str:
    (message,) = [record.message for record in caplog.records if record.levelno == logging.INFO and record.name == name]
    return message


def test_one_line(caplog: pytest.LogCaptureFixture):
    """Version, destination, who may join, upstream gateways, and the logger's name; no credentials."""
    companion = Companion(Exporter(MemoryDestination()), may_join, ["http://user:c4n4ry@gw:5000/gateway"])
    with caplog.at_level(logging.INFO, logger="agent_gateway_client"):
        companion.start()
        companion.start()
    assert line_of(caplog) == (
        f"agent-gateway-client {__version__}: calls are mirrored to MemoryDestination; may join a trace: "
        f"{__name__}:may_join; gateways behind this one: http://gw:5000 [{os.getpid()}]"
    )


def test_a_predicate_of_any_kind_has_a_name():
    assert Companion(Exporter(MemoryDestination()), ByEmail()).may_join == f"{__name__}:ByEmail"
    assert Companion(Exporter(MemoryDestination()), lambda scope: True).may_join.endswith("<lambda>")


async def test_it_comes_when_the_worker_starts(caplog: pytest.LogCaptureFixture):
    messages = iter(["lifespan.startup", "lifespan.shutdown"])
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        return

    async def receive() -> Any:
        return {"type": next(messages)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    middleware = GatewayTracingMiddleware(application, Exporter(MemoryDestination()))
    assert not caplog.records
    with caplog.at_level(logging.INFO, logger="agent_gateway_client"):
        await middleware({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert __version__ in line_of(caplog)


def test_the_server_logs_it_where_nobody_listens_to_us(monkeypatch: pytest.MonkeyPatch):
    """Under uvicorn our own logger has no handler, so its INFO lines would be lost."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.name} {record.getMessage()}")

    ours, uvicorns = logging.getLogger("agent_gateway_client"), logging.getLogger("uvicorn.error")
    handler = Handler()
    uvicorns.addHandler(handler)
    level = uvicorns.level
    uvicorns.setLevel(logging.INFO)
    monkeypatch.setattr(ours, "propagate", False)
    try:
        Companion(Exporter(MemoryDestination())).start()
    finally:
        uvicorns.removeHandler(handler)
        uvicorns.setLevel(level)
    (line,) = lines
    assert line.startswith("uvicorn.error agent-gateway-client")


def test_a_warm_up_runs_before_the_first_mirror_and_blocks_nothing(monkeypatch: pytest.MonkeyPatch):
    """It runs in the thread that sends: the start returns immediately, and calls are accepted meanwhile."""
    monkeypatch.setenv("AGENT_GATEWAY_WARM_UP", "1")
    begun, go_on, threads = threading.Event(), threading.Event(), []

    def import_much() -> None:
        threads.append(threading.current_thread().name)
        begun.set()
        assert go_on.wait(DEADLINE_S)

    destination = MemoryDestination()
    monkeypatch.setattr(destination, "warm_up", lambda: threads.append("destination"))
    exporter = Exporter(destination)
    Companion(exporter, warm_up=[import_much]).start()
    assert begun.wait(DEADLINE_S)
    submit(exporter, "a")
    assert not destination.tries
    go_on.set()
    assert exporter.flush()
    exporter.shutdown()
    assert threads == ["destination", "agent-gateway-exporter"]
    assert destination.names == ["gateway/a"]


@pytest.mark.usefixtures("guards_hold")
def test_a_warm_up_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture):
    monkeypatch.setenv("AGENT_GATEWAY_WARM_UP", "1")

    def fail() -> None:
        raise ImportError("canary")

    destination = MemoryDestination()
    exporter = Exporter(destination)
    Companion(exporter, warm_up=[fail]).start()
    submit(exporter, "a")
    assert exporter.flush()
    exporter.shutdown()
    assert destination.names == ["gateway/a"]
    (message,) = logged.messages
    assert message.startswith("Could not warm up; the first call does it (ImportError).")
    assert "canary" not in message


def test_without_the_variable_nothing_is_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AGENT_GATEWAY_WARM_UP", raising=False)
    called: list[str] = []
    exporter = Exporter(MemoryDestination())
    Companion(exporter, warm_up=[lambda: called.append("warm-up")]).start()
    submit(exporter, "a")
    assert exporter.flush()
    exporter.shutdown()
    assert not called
