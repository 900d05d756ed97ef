"""responses.py: the facts of each format, cut anywhere, and that nothing else is ever returned."""

import dataclasses
import gzip
import json
from typing import Any

import pytest

from agent_gateway_client.server.call import TokenUsage
from agent_gateway_client.server.reading import bodies
from agent_gateway_client.server.reading.bodies import CompressedBody, KeptBody
from agent_gateway_client.server.reading.responses import ResponseFacts, model_name, read_requested_model, read_response
from tests.support.wire_samples import (
    CANARY,
    CHAT_CHUNKS,
    CHAT_FACTS,
    CHAT_USAGE,
    CLAUDE,
    GENERATED,
    GENERATED_CHUNKS,
    MESSAGE,
    MESSAGE_EVENTS,
    MODEL,
    RESPONSE,
    RESPONSE_EVENTS,
    RESPONSE_FACTS,
    SAMPLES,
    TEXT,
    Sample,
    chat_chunk,
    events,
)

MANY = "x" * 100_000 + TEXT


def kept(*chunks: bytes) -> KeptBody:
    body = KeptBody()
    for chunk in chunks:
        body.add(chunk)
    return body


def read(sample: Sample) -> ResponseFacts:
    return read_response(kept(*sample.chunks), streaming=sample.streaming)


def read_json(value: Any) -> ResponseFacts:
    return read_response(kept(json.dumps(value).encode()), streaming=False)


def read_events(*values: Any) -> ResponseFacts:
    return read(events("/", list(values), ResponseFacts()))


@pytest.mark.parametrize("name", SAMPLES)
def test_each_format(name: str):
    """Model, tokens and finish reason are read, and the text of the answer is not mistaken for them."""
    assert read(SAMPLES[name]) == SAMPLES[name].facts


@pytest.mark.parametrize("name", SAMPLES)
def test_each_format_compressed(name: str):
    """A compressed response has the same facts."""
    body = CompressedBody()
    body.add(gzip.compress(SAMPLES[name].body))
    assert read_response(body.expanded(), streaming=SAMPLES[name].streaming) == SAMPLES[name].facts


@pytest.mark.parametrize("name", SAMPLES)
def test_split_at_every_byte(name: str):
    """The facts do not depend on how a server splits its answer into chunks."""
    sample = SAMPLES[name]
    for at in range(1, len(sample.body)):
        assert read_response(kept(sample.body[:at], sample.body[at:]), streaming=sample.streaming) == sample.facts


def of(facts: ResponseFacts) -> dict[str, Any]:
    usage = dataclasses.asdict(facts.usage or TokenUsage())
    return {**usage, "model": facts.model, "finish_reason": facts.finish_reason, "error_type": facts.error_type}


@pytest.mark.parametrize("name", SAMPLES)
def test_cut_at_every_byte(name: str, monkeypatch: pytest.MonkeyPatch):
    """If part of a response was dropped, each fact is right or unknown.

    Gemini sends running counts: if its last event is lost, the count before it is right.
    """
    sample = SAMPLES[name]
    size = len(sample.body)
    right = of(sample.facts)
    before = of(read_json(GENERATED_CHUNKS[0])) if name.startswith("streamGenerate") else right
    wholly_read = 0
    for tail_bytes in range(1, size, 7):
        for head_bytes in (1, size // 5, size // 2):
            monkeypatch.setattr(bodies, "HEAD_BYTES", head_bytes)
            monkeypatch.setattr(bodies, "TAIL_BYTES", tail_bytes)
            monkeypatch.setattr(bodies, "_TRIM_BYTES", tail_bytes)
            facts = of(read_response(kept(sample.body), streaming=sample.streaming))
            assert all(value in (None, right[key], before[key]) for key, value in facts.items()), (
                tail_bytes,
                head_bytes,
                facts,
            )
            wholly_read += facts == right
    assert wholly_read > size / 7 / 4


LARGE = {
    "chat": {
        "model": MODEL,
        "choices": [{"message": {"content": MANY}, "finish_reason": "stop"}],
        "usage": CHAT_USAGE,
    },
    "usage first": {
        "model": MODEL,
        "usage": CHAT_USAGE,
        "choices": [{"finish_reason": "stop", "message": {"content": MANY}}],
    },
    "sorted": {
        "choices": [{"finish_reason": "stop", "message": {"content": MANY}}],
        "model": MODEL,
        "usage": CHAT_USAGE,
    },
    "message": {**MESSAGE, "content": [{"type": "text", "text": MANY}]},
    "generateContent": {**GENERATED, "candidates": [{"content": {"parts": [{"text": MANY}]}, "finishReason": "STOP"}]},
    "embeddings": {"data": [{"embedding": [0.123456789] * 100_000}], "model": MODEL, "usage": {"prompt_tokens": 8}},
}


@pytest.mark.parametrize("name", LARGE)
def test_large_documents(name: str):
    """A JSON document above the size limit has the same facts as one below it: they are near its ends."""
    small = json.loads(json.dumps(LARGE[name]).replace("x" * 100_000, "").replace("0.123456789, ", ""))
    assert read_json(LARGE[name]) == read_json(small)
    assert read_json(small).usage is not None


def test_a_large_last_event():
    """OpenAI's response.completed repeats the whole response, and may exceed what is kept of the stream."""
    response = {**RESPONSE, "output": [{"content": [{"text": MANY}]}], "instructions": None}
    begun = {**response, "output": [], "usage": None, "status": "in_progress"}
    completed = {"type": "response.completed", "response": response, "sequence_number": 9}
    facts = read_events({"type": "response.created", "response": begun}, completed, "[DONE]")
    assert (facts.model, facts.usage) == (MODEL, RESPONSE_FACTS.usage)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 50, 5_000])
def test_a_stream_of_ten_thousand_chunks(size: int):
    """However long a stream is, its first and last events are kept."""
    middle = [chat_chunk({"content": "x" * size})] * 10_000
    assert read_events(*CHAT_CHUNKS[:1], *middle, *CHAT_CHUNKS[-3:]) == CHAT_FACTS
    middle = [{"type": "content_block_delta", "delta": {"text": "x" * size}}] * 10_000
    assert read_events(*MESSAGE_EVENTS[:2], *middle, *MESSAGE_EVENTS[-2:]) == SAMPLES["message stream"].facts


def test_a_stream_that_was_broken_off():
    """The facts sent until then are kept. Anthropic's first output count does not cover what was sent."""
    assert read_events(*CHAT_CHUNKS[:3]) == ResponseFacts(MODEL)
    assert read_events(*MESSAGE_EVENTS[:4]) == ResponseFacts(CLAUDE, TokenUsage(45, None, None, 30, 5))


def test_a_byte_order_mark():
    """Some servers begin a body with a byte order mark."""
    body = kept(b"\xef\xbb\xbf" + b'{"model": "m", "usage": {"prompt_tokens": 1}}')
    assert read_response(body, streaming=False) == ResponseFacts("m", TokenUsage(1))
    body = kept(b'\xef\xbb\xbfdata: {"model": "m"}\n\n')
    assert read_response(body, streaming=True) == ResponseFacts("m")


def test_one_huge_number():
    """A number that Python does not convert does not affect other facts."""
    body = kept(b'{"model": "m", "seed": ' + b"9" * 5_000 + b', "usage": {"prompt_tokens": 1}}')
    assert read_response(body, streaming=False) == ResponseFacts("m", TokenUsage(1))


def test_later_counts_replace_earlier_ones():
    """Some providers send running usage with every chunk; Anthropic may correct the input count at the end."""
    first, last = ({"usage": {"prompt_tokens": 5, "completion_tokens": n, "total_tokens": 5 + n}} for n in (1, 9))
    assert read_events(first, last).usage == TokenUsage(5, 9, 14)
    usage = {"input_tokens": 20, "cache_read_input_tokens": 40, "output_tokens": 3}
    facts = read_events(MESSAGE_EVENTS[0], {"type": "message_delta", "delta": {}, "usage": usage})
    assert facts.usage == TokenUsage(65, 3, 68, 40, 5)


@pytest.mark.parametrize(
    ("stream", "facts"),
    [
        (b'data:{"model":"m"}\n\ndata:{"usage":{"prompt_tokens":1}}', ResponseFacts("m", TokenUsage(1))),
        (b'data: {"model":\ndata: "m"}\n\n', ResponseFacts("m")),
        (b': comment\n\nid: 1\nretry: 5\ndata: {"model":"m"}\n\n', ResponseFacts("m")),
        (b'data: {"model":"m"}\r\rdata: {"usage":{"prompt_tokens":1}}\r\r', ResponseFacts("m", TokenUsage(1))),
        (b'{"model":"m"}\n{"usage":{"prompt_tokens":1}}\n', ResponseFacts("m", TokenUsage(1))),
        (b'data: {"model":"m"}\n\ndata: {"usage":{"prompt_tok', ResponseFacts("m")),
        (b'event: error\ndata: {"model":"m"}\n\ndata: nonsense "usage": 1\n\n', ResponseFacts("m")),
        (b'data: {"a": "\xe2\x80\xa8", "model": "m"}\n\n', ResponseFacts("m")),
        (b'data: {"a": "\xe2\x80", "model": "m"}\n\n', ResponseFacts("m")),
    ],
    ids=["no space", "two lines", "other fields", "CR", "JSON lines", "cut", "no JSON", "line separator", "bad UTF-8"],
)
def test_forms_of_a_stream(stream: bytes, facts: ResponseFacts):
    """Server-sent events are read according to the standard, and so is one JSON object per line."""
    assert read_response(kept(stream), streaming=True) == facts


@pytest.mark.parametrize(
    ("event", "error_type"),
    [
        ({"error": {"message": TEXT, "type": "server_error", "code": None}}, "server_error"),
        ({"error": {"message": TEXT, "type": "ClientPayloadError"}}, "ClientPayloadError"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": TEXT}}, "overloaded_error"),
        ({"type": "error", "code": "rate_limit_exceeded", "message": TEXT, "param": None}, "rate_limit_exceeded"),
        ({"error": {"code": 503, "message": TEXT, "status": "UNAVAILABLE"}}, "503"),
        ({"error": {"code": "429", "message": TEXT}}, "429"),
        ({"error": {"code": TEXT, "type": CANARY, "status": [TEXT]}}, "error"),
        ({"error": {"code": 10**400, "type": True}}, "error"),
        ({"error": TEXT}, "error"),
        (
            {
                "type": "response.failed",
                "response": {**RESPONSE, "status": "failed", "error": {"code": "server_error"}},
            },
            None,
        ),
    ],
)
def test_errors_inside_a_stream(event: Any, error_type: str | None):
    """For an error event after the HTTP status 200, only the error's name is read."""
    facts = read_events(chat_chunk({"content": TEXT}), event)
    assert facts.error_type == (error_type or "server_error")
    assert facts.model == MODEL


def test_an_error_as_a_successful_document():
    """Some gateways answer 200 with an error in the document."""
    assert read_json({"error": {"code": 502, "message": TEXT}}) == ResponseFacts(error_type="502")


def test_no_error_is_made_of_null():
    """OpenAI's responses contain error: null."""
    assert read_events(*RESPONSE_EVENTS).error_type is None


@pytest.mark.parametrize(
    ("response", "finish_reason"),
    [
        (
            {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            "max_output_tokens",
        ),
        ({**RESPONSE, "status": "in_progress"}, None),
        ({"choices": [{"finish_reason": "tool_calls"}]}, "tool_calls"),
        ({"choices": [{"finish_reason": f"stop {CANARY}"}]}, None),
        ({"choices": [{"finish_reason": "x" * 41}]}, None),
        ({"choices": [{"finish_reason": {"a": 1}}]}, None),
        ({"stop_reason": "model_context_window_exceeded"}, "model_context_window_exceeded"),
    ],
)
def test_finish_reasons(response: Any, finish_reason: str | None):
    """A finish reason is one word of letters, in the provider's own spelling."""
    assert read_json(response).finish_reason == finish_reason


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": -1, "completion_tokens": True, "total_tokens": 1.5}, None),
        ({"prompt_tokens": "7", "completion_tokens": [7]}, None),
        ({"prompt_tokens": 2**53 + 1, "completion_tokens": 3}, TokenUsage(None, 3)),
        ({"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": "x"}}, TokenUsage(1)),
        ({"prompt_tokens": 1, "prompt_tokens_details": [1]}, TokenUsage(1)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, TokenUsage(0, 0, 0)),
        ({"input_tokens": 1, "output_tokens": 2}, TokenUsage(1, 2, 3)),
        ({"input_tokens": 10, "cache_read_input_tokens": None, "output_tokens": 2}, TokenUsage(10, 2, 12)),
        ({"input_tokens": 10, "total_tokens": 12, "cache_read_input_tokens": 4}, TokenUsage(10, None, 12, 4)),
        ({"type": "duration", "seconds": 7}, None),
        ({}, None),
        (7, None),
    ],
)
def test_counts(usage: Any, tokens: TokenUsage | None):
    """Counts are non-negative integers that every reader can hold; other values are unknown."""
    assert read_json({"usage": usage}).usage == tokens


@pytest.mark.parametrize(
    "value", ["gpt-4o", "openai/gpt-4o:free", "ft:gpt-4o@acme", "projects/p/models/gemini_1.5", "x" * 200]
)
def test_names_of_models(value: str):
    """These values have the form of a model's name."""
    assert model_name(value) == value


@pytest.mark.parametrize("value", ["", "two words", "x" * 201, "line\n", "naïve", "a\x00", '"', 7, None, ["gpt"]])
def test_what_is_no_name(value: Any):
    """Free text does not have the form of a model's name."""
    assert model_name(value) is None
    assert read_json({"model": value}).model is None


REQUESTS = {
    "small": {"model": "chat", "messages": [{"content": TEXT}]},
    "large, model first": {"model": "chat", "messages": [{"content": MANY}]},
    "large, model last": {"messages": [{"content": MANY, "model": "no"}], "model": "chat", "tools": [{"model": "no"}]},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_model_that_is_asked_for(name: str):
    """The request's own model is found, not one mentioned in its messages."""
    assert read_requested_model(kept(json.dumps(REQUESTS[name]).encode())) == "chat"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"7", b"{", b'{"model": "two words"}', b'{"a": {"model": "chat"}}', b"\xff"]
)
def test_no_model_is_asked_for(body: bytes):
    """A request may have no model, or be malformed."""
    assert read_requested_model(kept(body)) is None
