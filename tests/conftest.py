"""What holds for every test."""

import gc
import os
import sys
import warnings
from pathlib import Path

import pytest

from tests.support.tables import mark_cells, pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

# Read when MLflow and LiteLLM are imported, here and in the servers that tests start: nothing leaves this machine.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

# Read when this package is imported, here and in the programs that tests start: a bug that a guard would hide fails.
os.environ["AGENT_GATEWAY_RAISE_INTERNAL_ERRORS"] = "1"

pytest.register_assert_rewrite("tests.support.e2e")

E2E = Path(__file__).parent / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(E2E):
            item.add_marker(pytest.mark.e2e)
    mark_cells(items)


@pytest.fixture
def guards_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guards stop errors, as they do for users, in a test that provokes one."""
    from agent_gateway_client import _guard

    monkeypatch.setattr(_guard, "reraises", False)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Collect the clients that LiteLLM leaves open in event loops of its own, before pytest takes them for ours."""
    if "litellm" in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(5):  # As often as pytest does.
                gc.collect()
