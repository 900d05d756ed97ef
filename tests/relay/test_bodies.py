"""Request bodies: both encodings are decoded alike, and whatever is sent is decoded or refused within bounds."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent_gateway_client.relay import otlp_json, protobuf
from agent_gateway_client.relay.body import TooLarge, decompress
from agent_gateway_client.relay.dialects import ALL_KEYS, NAMES
from agent_gateway_client.relay.spans import Batch, IncomingSpan, MalformedBody
from tests.support.otlp_spans import CALLER, attempt, json_body, protobuf_body, request, root, span

BOUNDS: Any = (ALL_KEYS, NAMES, 100, 50)
MEBIBYTE = 1024 * 1024


def full_span() -> Span:
    """Return a span with an attribute of each type, an event, a link and a status."""
    made = root(
        attributes={
            "gen_ai.provider.name": "openai",
            "gen_ai.usage.input_tokens": -3,
            "gen_ai.response.time_to_first_chunk": 0.25,
            "gen_ai.request.stream": True,
            "gen_ai.response.finish_reasons": ["stop", "length"],
            "gen_ai.input.messages": "canary",
        },
        failed=True,
        message="canary",
    )
    made.events.add(name="canary", attributes=[])
    made.links.add(trace_id=b"\1" * 16, span_id=b"\2" * 8)
    made.trace_state = "a=canary"
    return made


def test_both_encodings_say_the_same():
    """A span decoded from protobuf equals one decoded from JSON, and holds only what is needed."""
    spans = [full_span(), attempt(2)]
    from_protobuf = protobuf.read_request(protobuf_body(spans, service="agent-gateway", scope="fastapi"), *BOUNDS)
    from_json = otlp_json.read_request(json_body(spans, service="agent-gateway", scope="fastapi"), *BOUNDS)
    assert from_protobuf == from_json
    assert from_protobuf.rejected == 0
    (first, second) = from_protobuf.spans
    assert (first.span_id, first.parent_id, first.kind, first.failed) == (1, CALLER, 2, True)
    assert (first.resource.service, first.scope, first.parent_is_remote) == ("agent-gateway", "fastapi", True)
    assert first.link == (int("01" * 16, 16), int("02" * 8, 16))
    assert first.attributes == {
        "gen_ai.provider.name": "openai",
        "gen_ai.usage.input_tokens": -3,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": "stop",
    }
    assert not second.parent_is_remote
    assert "canary" not in repr(from_protobuf)


def test_the_resource_may_come_last():
    """Protobuf fields may be in any order."""
    sent = request([root()], service="agent-gateway", scope="fastapi").resource_spans[0]
    resource, scope_spans = sent.resource.SerializeToString(), sent.scope_spans[0].SerializeToString()
    fields = _field(2, scope_spans) + _field(1, resource)
    (read,) = protobuf.read_request(_field(1, fields), *BOUNDS).spans
    assert read.resource.service == "agent-gateway"


def test_the_value_may_come_first():
    """An attribute whose key follows its value is read too."""
    sent = root(attributes={"gen_ai.provider.name": "openai"})
    key, value = _field(1, b"gen_ai.provider.name"), _field(2, _field(1, b"openai"))
    whole = sent.SerializeToString()
    assert key + value in whole
    turned = whole.replace(key + value, value + key)
    (read,) = protobuf.read_request(_field(1, _field(2, _field(2, turned))), *BOUNDS).spans
    assert read.attributes == {"gen_ai.provider.name": "openai"}


def test_names_of_enums():
    """Protobuf's JSON encoders write enums by name."""
    sent = json.loads(json_body([root(failed=True)]))
    (one,) = sent["resourceSpans"][0]["scopeSpans"][0]["spans"]
    one["kind"], one["status"]["code"] = "SPAN_KIND_SERVER", "STATUS_CODE_ERROR"
    (read,) = otlp_json.read_request(json.dumps(sent).encode(), *BOUNDS).spans
    assert (read.kind, read.failed) == (2, True)


@pytest.mark.parametrize("encode", [protobuf_body, json_body])
def test_spans_without_ids_are_rejected(encode: Any):
    """They are counted, and the other spans are accepted."""
    spans = [root(), root(), root()]
    spans[0].trace_id = b"\0" * 16
    spans[1].span_id = b"\1" * 7
    batch = _read(encode, spans)
    assert (len(batch.spans), batch.rejected) == (1, 2)


@pytest.mark.parametrize("encode", [protobuf_body, json_body])
def test_more_spans_than_are_taken(encode: Any):
    """The rest are rejected without being decoded."""
    batch = _read(encode, [span(number, CALLER) for number in range(1, 151)])
    assert (len(batch.spans), batch.rejected) == (100, 50)


@pytest.mark.parametrize("encode", [protobuf_body, json_body])
def test_more_attributes_than_are_looked_at(encode: Any):
    """The rest are ignored."""
    many = {f"k{number}": number for number in range(50)}
    (read,) = _read(encode, [root(attributes={**many, "gen_ai.provider.name": "openai"})]).spans
    assert read.attributes == {}


@pytest.mark.parametrize("encode", [protobuf_body, json_body])
def test_a_long_text_is_left_out(encode: Any):
    """No name is that long."""
    (read,) = _read(encode, [root(attributes={"gen_ai.request.model": "m" * 10_000})]).spans
    assert read.attributes == {}


@pytest.mark.parametrize(
    "body",
    [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05ab", b"\x00", b"\x0b\x0c", b"\x0d\x01", b"\x0a" + b"\xff" * 11],
)
def test_malformed_protobuf(body: bytes):
    """A length beyond the end, a number without an end, field number 0, a group."""
    with pytest.raises(MalformedBody):
        protobuf.read_request(body, *BOUNDS)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"resourceSpans": 1}',
        b'{"resourceSpans": [1]}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": {}}]}]}',
    ],
)
def test_malformed_json(body: bytes):
    """Not JSON, JSON of another shape, and nesting that is too deep for the decoder."""
    with pytest.raises(MalformedBody):
        otlp_json.read_request(body, *BOUNDS)


@pytest.mark.parametrize("value", [1e400, float("nan"), True, None, [], {}, "x", "9" * 30, 10**400, -1])
@pytest.mark.parametrize("kind", ["intValue", "doubleValue", "stringValue", "boolValue", "arrayValue"])
@pytest.mark.parametrize("member", ["kind", "flags", "startTimeUnixNano", "status", "traceId", "links"])
def test_json_of_any_type(value: Any, kind: str, member: str):
    """A value of the wrong type is left out, and the other spans are still read."""
    sent = json.loads(json_body([root(attributes={"gen_ai.provider.name": "x"}), attempt(2)]))
    one = sent["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    one["attributes"][0]["value"] = {kind: value}
    one[member] = value
    try:
        batch = otlp_json.read_request(json.dumps(sent).encode(), *BOUNDS)
    except MalformedBody:
        assert member == "links"
        return
    assert batch.spans[-1].span_id == 2


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes(body: bytes):
    """Any bytes are decoded or refused."""
    _read_or_refuse(body)


def peak_of(work: Callable[[], object]) -> int:
    """Return the memory in bytes that something takes: the least of three, as other threads of the tests take some."""
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return min(peaks)


@pytest.mark.parametrize("inner", [b"", b"\x12\x00", b"\x12\x02\x12\x00"], ids=["resources", "scopes", "spans"])
def test_a_body_of_nothing_but_empty_messages(inner: bytes):
    """Tens of thousands of two-byte messages are counted without creating an object for each."""
    body = _field(1, inner) * 30_000
    assert peak_of(lambda: protobuf.read_request(body, *BOUNDS)) < MEBIBYTE // 4


def test_too_many_fields(monkeypatch: pytest.MonkeyPatch):
    """A body that would keep a core busy for too long is refused."""
    monkeypatch.setattr(protobuf, "_MAX_FIELDS", 1000)
    with pytest.raises(MalformedBody):
        protobuf.read_request(_field(1, b"") * 1001, *BOUNDS)


def test_gzip():
    """A body may have one member or several."""
    assert decompress(gzip.compress(b"one", mtime=0) + gzip.compress(b"two", mtime=0), 100) == b"onetwo"
    assert decompress(gzip.compress(b"", mtime=0), 100) == b""


def test_a_gzip_bomb():
    """A body that decompresses to more than the limit is refused before it is fully decompressed."""
    bomb = gzip.compress(b"\0" * (64 * MEBIBYTE), mtime=0)

    def open_it() -> None:
        with pytest.raises(TooLarge):
            decompress(bomb, MEBIBYTE)

    assert peak_of(open_it) < 8 * MEBIBYTE


@pytest.mark.parametrize(
    "body", [b"no gzip", gzip.compress(b"cut off" * 100, mtime=0)[:-9], gzip.compress(b"one", mtime=0) + b"junk"]
)
def test_malformed_gzip(body: bytes):
    """It is refused, even if part of it could be decoded."""
    with pytest.raises(MalformedBody):
        decompress(body, MEBIBYTE)


def _read(encode: Any, spans: list[Span]) -> Batch:
    reader = protobuf if encode is protobuf_body else otlp_json
    return reader.read_request(encode(spans), *BOUNDS)


def _read_or_refuse(body: bytes) -> None:
    for reader in (protobuf, otlp_json):
        try:
            batch = reader.read_request(body, *BOUNDS)
        except MalformedBody:
            continue
        for one in batch.spans:
            assert isinstance(one, IncomingSpan)
            assert 0 < one.trace_id < 1 << 128
            assert 0 < one.span_id < 1 << 64
            assert set(one.attributes) <= ALL_KEYS


def _field(number: int, content: bytes) -> bytes:
    assert len(content) < 1 << 14
    length = bytes([len(content)]) if len(content) < 128 else bytes([len(content) & 0x7F | 0x80, len(content) >> 7])
    return bytes([number << 3 | 2]) + length + content
