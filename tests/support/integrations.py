"""The environments that the agents of integrations/ run in."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SHARED = dict.fromkeys(("agent-framework", "agno", "google-adk", "haystack", "smolagents", "strands"), "agents")
"""Folders whose frameworks share an environment with each other, and not with the tests."""


def environment_of(folder: Path) -> str | None:
    """Return the environment that the programs of a folder run in; ``None`` for that of the tests.

    An integration whose framework conflicts with the tests' environment has one apart.
    """
    if folder.parent != ROOT / "integrations":
        return None
    return folder.name if (ROOT / "constraints" / f"{folder.name}.txt").exists() else SHARED.get(folder.name)


def python_of(folder: Path) -> str:
    """Return the Python that the programs of a folder run in; skips if it is not set up."""
    environment = environment_of(folder)
    if environment is None:
        return sys.executable
    own = ROOT / f".venv-{environment}" / "bin" / "python"
    if not own.exists():
        pytest.skip(f"{own} is not there; `make test-beside` makes it")
    return str(own)


def marks_of(folder: Path) -> list[pytest.MarkDecorator]:
    """Return the marks of a test that runs the programs of a folder."""
    return [pytest.mark.beside] if environment_of(folder) else []
