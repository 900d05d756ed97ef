"""_guard.py: what a guard stops, what it says, and what it lets through."""

import logging

import pytest

from agent_gateway_client import _guard, _log
from agent_gateway_client._guard import Guard


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_log, "_warned", set())


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.usefixtures("guards_hold")
def test_an_error_is_stopped_and_said_once(caplog: pytest.LogCaptureFixture):
    """The code goes on; one warning gives the reason and the version, and DEBUG the traceback each time."""
    caplog.set_level(logging.DEBUG, "agent_gateway_client")
    guard = Guard("Could not look", "pytest", "no-such-distribution")
    for _ in range(2):
        with guard, guard:
            raise KeyError("a prompt")
    (warning,) = warnings_in(caplog)
    assert f"Could not look (KeyError with pytest {pytest.__version__}, no-such-distribution unknown)" in warning
    assert "a prompt" not in warning
    details = [record for record in caplog.records if record.levelno == logging.DEBUG]
    assert [record.exc_info is not None for record in details] == [True, True]


@pytest.mark.usefixtures("guards_hold")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_error_of_ours_goes_through(kind: type[BaseException]):
    """An interruption is the user's."""
    with pytest.raises(kind), Guard("Could not look"):
        raise kind


def test_in_the_tests_an_error_goes_through():
    """A bug that a guard would hide fails the test that has it."""
    assert _guard.reraises
    with pytest.raises(KeyError), Guard("Could not look"):
        raise KeyError("on purpose")
