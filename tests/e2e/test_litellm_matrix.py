"""instrument_litellm() against a real gateway: every kind of call with a route there, with autolog off and on."""

import httpx
import pytest
from mlflow.entities import Trace

from tests.support.columns import litellm
from tests.support.columns.litellm import AUTOLOG, FAILS
from tests.support.e2e import assert_mirror, children_of, mirrors_in, read_trace, wait_for
from tests.support.matrix import MINI, Cell, Columns, Made, assert_cell, columns_of, each_cell, is_clients

columns = columns_of(litellm)

TITLE = "LiteLLM"

NO_ROUTE = {
    "image_generation": "/openai/v1/images/generations",
    "transcription": "/openai/v1/audio/transcriptions",
    "speech": "/openai/v1/audio/speech",
    "moderation": "/openai/v1/moderations",
    "rerank": "/v2/rerank",
    "text completion at its own address": "/openai/v1/completions",
}
"""Kinds of calls that MLflow's gateway does not serve, and their routes."""


@each_cell(litellm, TITLE)
def test_litellm(cell: Cell, autolog: str, columns: Columns):
    """Each call of the cell has one mirror, below the span of that call, and its tokens are counted once."""
    if "fallback" in cell.mode:
        assert_fallback(columns[autolog][str(cell)], autolog)
    else:
        assert_cell(cell, columns[autolog], autolog)


def assert_fallback(made: Made, autolog: str) -> None:
    """Assert that the failed call and its fallback have one mirror each, each below its own span."""
    assert made.error is None, made.error

    def complete() -> Trace | None:
        trace = read_trace(made.trace_id)
        if trace is None or trace.info.state == "IN_PROGRESS" or len(mirrors_in(trace)) < 2:
            return None
        return read_trace(made.trace_id)

    trace = wait_for(f"both mirrors in {made.trace_id}", complete)
    spans = {span.span_id: span for span in trace.data.spans}
    mirrors = mirrors_in(trace)
    callers = [spans[str(mirror.parent_id)] for mirror in mirrors]
    for mirror, caller, attempt in zip(mirrors, callers, [FAILS, MINI], strict=True):
        assert_mirror(trace, mirror, caller, [attempt])
    if autolog == "off":
        assert {caller.span_id for caller in callers} == {made.span_id}
    else:
        own = [span.span_id for span in trace.data.spans if span.span_type == "LLM" and is_clients(span)]
        assert sorted(caller.span_id for caller in callers) == sorted(own)
    (answered,) = children_of(trace, mirrors[1])
    reported = answered.attributes["mlflow.chat.tokenUsage"]

    def counted() -> bool:
        now = read_trace(made.trace_id)
        usage = (now and now.info.token_usage) or {}
        return all(usage.get(kind) == reported[kind] for kind in ("input_tokens", "output_tokens"))

    wait_for(f"{made.trace_id} to have {reported}", counted)


@pytest.mark.table(TITLE, rows="kind", columns="autolog")
@pytest.mark.parametrize("autolog", AUTOLOG)
@pytest.mark.parametrize("kind", NO_ROUTE)
def test_litellm_without_a_route(kind: str, autolog: str, http: httpx.Client):
    """Calls that the gateway does not serve are tested in tests/litellm/, with the provider in its place."""
    path = NO_ROUTE[kind]
    assert http.post(path.lstrip("/"), json={"model": "chat"}).status_code in (404, 405)
    pytest.skip(f"MLflow's gateway has no route {path}; tests/litellm/ has it, against the local provider")
