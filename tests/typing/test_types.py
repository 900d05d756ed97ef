"""What a user's type checker sees of this package. The files in cases/ are checked, not run."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mypy import api

CASES = Path(__file__).parent / "cases"
WRITTEN_FOR = {"openai_clients": "openai", "httpx_clients": "httpx", "httpx2_clients": "httpx2", "gateways": "fastapi"}
"""The cases, and the package that each needs; not every environment has all."""


def check(path: Path) -> tuple[str, str, int]:
    """Run mypy with a cache for each environment, which differ in openai."""
    options = [f"--config-file={CASES.with_name('mypy.ini')}", f"--cache-dir={sys.prefix}/.mypy_cache"]
    return api.run([*options, str(path)])


@pytest.mark.parametrize("case", [case for case, package in WRITTEN_FOR.items() if find_spec(package)])
def test_a_strict_type_checker_agrees_with(case):
    """mypy --strict reports nothing: the types that a case asserts are there, and so is each error that it expects."""
    report, errors, _ = check(CASES / f"{case}.py")
    assert (report.strip(), errors) == ("Success: no issues found in 1 source file", "")


def test_a_wrong_case_would_be_reported(tmp_path):
    """The check above can fail: a type that is not kept, and an error that is not there, are reported."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from openai import AsyncOpenAI, OpenAI\n"
        "from typing_extensions import assert_type\n"
        "from agent_gateway_client import wrap_openai\n"
        "def f(client: OpenAI) -> None:\n"
        "    assert_type(wrap_openai(client), AsyncOpenAI)\n"
        "    wrap_openai(client)  # type: ignore[type-var]\n"
    )
    report, _, _ = check(wrong)
    assert "wrong.py:5: error: Expression is of type" in report
    assert 'wrong.py:6: error: Unused "type: ignore" comment' in report
