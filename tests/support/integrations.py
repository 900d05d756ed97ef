"""The environments that the agents of integrations/ run in."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SHARED = dict.fromkeys(("agent-framework", "agno", "google-adk", "haystack", "smolagents", "strands"), "agents")
"""Folders whose frameworks share an environment with each other, and not with the tests."""


def python_of(folder: Path) -> str:
    """Return the Python that the programs of a folder run in.

    An integration whose framework conflicts with the tests' environment has one apart; skips if that is not set up.
    """
    name = folder.name
    environment = name if (ROOT / "constraints" / f"{name}.txt").exists() else SHARED.get(name)
    if environment is None or folder.parent != ROOT / "integrations":
        return sys.executable
    own = ROOT / f".venv-{environment}" / "bin" / "python"
    if not own.exists():
        pytest.skip(f"{own} is not there; `make test` makes it")
    return str(own)
