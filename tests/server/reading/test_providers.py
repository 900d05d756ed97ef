"""The facts of real providers' answers, as listed in docs/providers.md; the rows are in tests/support/providers.py."""

import json
from pathlib import Path

import pytest

from agent_gateway_client.server.call import Cost, TokenUsage
from agent_gateway_client.server.reading.bodies import KeptBody
from agent_gateway_client.server.reading.responses import ResponseFacts, has_last_event, read_response
from tests.support.providers import ROWS, Row, chat, message, table, wrapped

PAGE = Path(__file__).parents[3] / "docs" / "providers.md"
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def read(body: bytes, streaming: bool = False, chunk: int = 0) -> ResponseFacts:
    kept = KeptBody()
    for at in range(0, len(body), chunk or len(body) or 1):
        kept.add(body[at : at + (chunk or len(body))])
    return read_response(kept, streaming=streaming)


def test_the_page_has_the_table():
    """The page shows exactly the rows that are tested."""
    page = PAGE.read_text().splitlines()
    start = page.index(table()[0])
    assert page[start : start + len(table())] == table()
    assert page[start + len(table())] == ""


@each_row
def test_a_row(row: Row):
    """Tokens, cost and finish reason are read, wherever the provider puts them."""
    facts = read(row.body, row.streaming)
    assert (facts.usage, facts.cost, facts.finish_reason) == (row.usage, row.cost, row.finish_reason)
    assert facts.error_type is None


@each_row
def test_a_row_in_small_pieces(row: Row):
    """The same facts are read however the server splits the body."""
    assert read(row.body, row.streaming, 7) == read(row.body, row.streaming)


@pytest.mark.parametrize("total", [{}, {"total_tokens": 15}], ids=["no total", "with a total"])
def test_more_reasoning_than_output(total: dict[str, int]):
    """DeepInfra's Gemini models count reasoning neither in the output nor in the total."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 20}}
    assert read(chat({**usage, **total})).usage == TokenUsage(10, 25, 35, reasoning_output_tokens=20)


def test_a_long_event_stream():
    """If a stream is cut between its ends, the first whole message of its end is found."""
    delta = message("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x" * 300}})
    row = next(one for one in ROWS if one.name == "Bedrock, ConverseStream")
    facts = read(delta * 400 + row.body, True, 1_000)
    assert (facts.usage, facts.finish_reason) == (row.usage, "end_turn")


@pytest.mark.parametrize(
    ("stream", "error_type"),
    [
        (message("throttlingException", {"message": "no"}, "exception"), "ThrottlingException"),
        (message("ignore this", {"message": "no"}, "exception"), "error"),
    ],
)
def test_an_exception_in_an_event_stream(stream: bytes, error_type: str):
    """Bedrock ends a failing stream with the exception's class."""
    assert read(message("messageStart", {"role": "assistant"}) + stream, True).error_type == error_type


@pytest.mark.parametrize("cut", range(1, 200, 13))
def test_an_event_stream_that_was_broken_off(cut: int):
    """An incomplete message is not read, and raises nothing."""
    row = next(one for one in ROWS if one.name == "Bedrock, ConverseStream")
    assert read(row.body[:-cut], True).usage is None
    assert read(row.body[:-cut] + b"\x00" * cut, True).usage is None


def test_what_the_model_says_is_no_event():
    """A base64 answer that imitates a usage object is not read as one."""
    text = json.dumps({"usage": {"input_tokens": 7}})
    assert read(wrapped({"type": "content_block_delta", "delta": {"text": text}}), True).usage is None


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"cost": 0.5, "is_byok": True, "cost_details": {"upstream_inference_cost": 2}}, Cost(None, None, 2.5)),
        ({"cost": 0.5, "is_byok": True, "cost_details": None}, Cost(None, None, 0.5)),
        ({"cost": 0}, Cost(None, None, 0.0)),
        ({"cost": -1}, None),
        ({"cost": True}, None),
        ({"cost": float("nan")}, None),
        ({"cost": float("inf")}, None),
        ({"cost": "0.5"}, None),
        ({"cost": {"total_cost": 1, "currency": "EUR"}}, None),
        ({"cost": {"input_cost": 1}}, None),
        ({"cost_in_usd_ticks": -1}, None),
    ],
)
def test_costs(usage: dict[str, object], cost: Cost | None):
    """A cost is an amount in USD; other values are left out."""
    assert read(chat({"prompt_tokens": 1, **usage})).cost == cost


def test_cache_writes_by_their_lifetime():
    """If there is no total, the writes for five minutes and for one hour are added up."""
    lifetimes = {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200}
    body = json.dumps({"usage": {"input_tokens": 10, "output_tokens": 5, "cache_creation": lifetimes}})
    assert read(body.encode()).usage == TokenUsage(310, 5, 315, None, 300, None, 200)


@pytest.mark.parametrize("name", ["Anthropic", "Bedrock, ConverseStream", "Cohere, v2", "Ollama", "OpenRouter"])
def test_how_a_stream_ends(name: str):
    """A client that closes the connection at the last event has not disconnected early; before it, it has."""
    body = next(row.body for row in ROWS if row.name == name)
    assert has_last_event(body)
    assert not has_last_event(body[: len(body) // 4])
