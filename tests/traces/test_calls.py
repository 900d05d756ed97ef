"""calls.py: one row per provider attempt, in which what is not known is missing and not 0."""

import subprocess
import sys
from typing import Any

import pytest

from agent_gateway_client.traces.calls import COLUMNS, rows_of
from tests.support.trace_samples import joined, span

TOKENS = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12, "cache_read_input_tokens": 4}


def rows(*spans: Any) -> list[dict[str, Any]]:
    return list(rows_of(joined(*spans).spans, "tr-1"))


def test_a_row_per_attempt():
    failed, answered = rows(
        span(1, None, "agent", 0, 100),
        span(2, 1, "research", 5, 95),
        span(3, 2, "Completions", 6, 94, mlflow__spanType="CHAT_MODEL"),
        span(4, 3, "gateway/fallback", 10, 90, endpoint_name="fallback"),
        span(5, 4, "provider/openai/m1", 20, 30, mlflow__llm__model="m1", error__type="503"),
        span(6, 4, "provider/openai/m2", 40, 80, mlflow__llm__model="m2", mlflow__llm__provider="openai",
             mlflow__chat__tokenUsage=TOKENS, mlflow__llm__cost={"total_cost": 0.5}),
    )  # fmt: skip
    assert set(failed) == set(answered) == set(COLUMNS)
    assert (failed["attempt"], failed["status"], failed["error"], failed["cost"]) == (1, "ERROR", "503", None)
    assert (failed["input_tokens"], failed["cached_tokens"]) == (None, None)
    assert answered == {
        "trace_id": "tr-1", "agent_span": "research", "agent_span_ms": 90.0, "endpoint": "fallback", "attempt": 2,
        "provider": "openai", "model": "m2", "status": "OK", "error": None, "input_tokens": 10, "cached_tokens": 4,
        "output_tokens": 2, "cost": 0.5, "start": 40_000_000, "attempt_ms": 40.0, "call_ms": 80.0,
    }  # fmt: skip


def test_a_call_that_reached_no_provider_is_not_left_out():
    (row,) = rows(span(1, None, "agent", 0, 9), span(2, 1, "gateway/chat", 1, 5, error__type="429"))
    assert (row["attempt"], row["model"], row["error"], row["attempt_ms"], row["call_ms"]) == (
        None,
        None,
        "429",
        None,
        4.0,
    )


def test_a_mirror_whose_caller_is_missing_has_a_row_too():
    (row,) = rows(span(2, 9, "gateway/chat", 1, 5))
    assert (row["agent_span"], row["endpoint"]) == (None, "chat")


def test_a_call_with_no_span_around_its_own():
    """Then the client's span of the call is all that is known of the agent."""
    (row,) = rows(span(1, None, "Completions", 0, 9, mlflow__spanType="LLM"), span(2, 1, "gateway/chat", 1, 5))
    assert row["agent_span"] == "Completions"


def test_an_empty_frame_has_the_same_columns():
    pandas = pytest.importorskip("pandas")
    empty = pandas.DataFrame([], columns=list(COLUMNS)).astype(COLUMNS)
    assert {name: str(kind) for name, kind in empty.dtypes.items()} == COLUMNS


def test_without_pandas():
    """Nothing else needs it, and asking for the frame says what to install."""
    program = (
        "import sys; sys.modules['pandas'] = None\n"
        "from agent_gateway_client.traces import joined_calls\n"
        "try:\n    joined_calls('any')\nexcept ImportError as error:\n    print(type(error).__name__, error)\n"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "MissingDependencyError joined_calls() needs the package pandas: pip install pandas"
