"""The companion's public names keep their promises to a type checker."""

import sys
from pathlib import Path

from mypy import api

CASE = Path(__file__).parents[1] / "typing" / "cases" / "gateways.py"


def test_a_strict_type_checker_agrees_with_a_gateway():
    """mypy --strict reports nothing on typed code that uses the companion with FastAPI and Starlette."""
    cache = f"--cache-dir={sys.prefix}/.mypy_cache"
    report, errors, _ = api.run(["--strict", "--config-file=", cache, str(CASE)])
    assert (report.strip(), errors) == ("Success: no issues found in 1 source file", "")
