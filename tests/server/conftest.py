"""Fixtures for all tests of the companion."""

import logging
from collections.abc import Iterator

import pytest

from agent_gateway_client import _log
from agent_gateway_client.server.export import sender, waiting
from tests.support.asgi import Mirrors


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the exporter's pauses; its behaviour is the same."""
    monkeypatch.setattr(sender, "BATCH_SECONDS", 0.001)
    monkeypatch.setattr(sender, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(sender, "LAST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sender, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(waiting, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(_log, "_warned", set())


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The companion's log messages at level warning or above."""
    with caplog.at_level(logging.WARNING, logger="agent_gateway_client"):
        yield caplog


@pytest.fixture
def mirrors() -> Mirrors:
    """An exporter, and the mirrors that it sent."""
    return Mirrors()
