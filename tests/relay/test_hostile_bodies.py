"""Malformed, huge and hostile requests: the relay answers each, its memory stays bounded, and it goes on working."""

import gzip
import random
import resource
import struct
from collections import Counter
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from agent_gateway_client.relay import Limits, Relay
from tests.support.nightly import amount
from tests.support.otlp_spans import Sink, attempt, json_body, protobuf_body, root

REQUESTS = amount(4_000, 100_000)
WARM_UP = 1_000
MEBIBYTE = 1024 * 1024
BODY_BYTES = MEBIBYTE // 4
MOST_GROWTH = 32 * MEBIBYTE
"""Half of what a single gzip bomb decompresses to."""

LIMITS = Limits(body_bytes=BODY_BYTES, settle_seconds=0.05, wait_seconds=0.1, call_seconds=0.5)
PROTOBUF, JSON = b"application/x-protobuf", b"application/json"
TYPES = [PROTOBUF, JSON, b"application/json; charset=utf-8", b"text/plain", b""]
ENCODINGS = [b"gzip", b"identity", b"zstd", b"gzip, gzip", b"\xff"]
ANSWERS = {200, 400, 408, 413, 415, 429}

CALL = [root(attributes={"gen_ai.input.messages": "p" * 200, "http.status_code": 200}), attempt(2)]
WHOLE = {PROTOBUF: protobuf_body(CALL), JSON: json_body(CALL)}
EMPTY_SCOPES = ResourceSpans(scope_spans=[ScopeSpans(spans=[Span()])] * (BODY_BYTES // 4 - 10))
HUGE: list[tuple[bytes, bytes, bytes]] = [
    (PROTOBUF, b"", b"\0" * (2 * BODY_BYTES)),
    (PROTOBUF, b"", b"\x0a\x00" * (BODY_BYTES // 2)),
    (PROTOBUF, b"", ExportTraceServiceRequest(resource_spans=[EMPTY_SCOPES]).SerializeToString()),
    (PROTOBUF, b"gzip", gzip.compress(b"\0" * (64 * MEBIBYTE), mtime=0)),
    (PROTOBUF, b"gzip", gzip.compress(b"", mtime=0) * (BODY_BYTES // 32)),
    (JSON, b"", b"[" * BODY_BYTES),
    (JSON, b"", b'{"a":' * 40_000 + b"1" + b"}" * 40_000),
    (JSON, b"", b"9" * BODY_BYTES),
    (JSON, b"", b'{"resourceSpans": [{}' + b",{}" * 80_000 + b"]}"),
    (JSON, b"", b'"' + b"\\u0000" * (BODY_BYTES // 6 - 1) + b'"'),
    (JSON, b"gzip", gzip.compress(b" " * (64 * MEBIBYTE), mtime=0)),
]
"""Content type, encoding and body: too large, empty messages, bombs, deep nesting, endless numbers."""


def changed(chance: random.Random, whole: bytes) -> bytes:
    """Return a body with bytes changed, removed, repeated and inserted."""
    body = bytearray(whole)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(body))
        how = chance.randrange(4)
        if how == 0:
            body[at] = chance.randrange(256)
        elif how == 1:
            del body[at : at + chance.randint(1, 20)]
        elif how == 2:
            body[at:at] = body[at : at + chance.randint(1, 40)]
        else:
            body[at:at] = struct.pack("<Q", chance.getrandbits(64))
        if not body:
            break
    return bytes(body)


def hostile(chance: random.Random, number: int) -> tuple[bytes, bytes, bytes]:
    """Return content type, content encoding and body of a request."""
    if number % 300 == 0:
        return HUGE[number // 300 % len(HUGE)]
    kind = chance.choice([PROTOBUF, JSON])
    body = changed(chance, WHOLE[kind]) if chance.random() < 0.8 else chance.randbytes(chance.randrange(400))
    if chance.random() < 0.1:
        return chance.choice(TYPES), chance.choice(ENCODINGS), body
    if chance.random() < 0.2:
        compressed = gzip.compress(body, 1, mtime=0)
        return kind, b"gzip", changed(chance, compressed) if chance.random() < 0.3 else compressed
    return kind, b"", body


async def answer_to(relay: Relay, chance: random.Random, kind: bytes, encoding: bytes, body: bytes) -> int:
    """Send a request in chunks, sometimes without the last one; return the status of the answer."""
    pieces = [body[: len(body) // 2], body[len(body) // 2 :]]
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if chance.random() < 0.02:
        messages.append({"type": "http.disconnect"})
    else:
        messages.append({"type": "http.request", "body": b""})
    statuses = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"content-type", kind), (b"content-encoding", encoding)]
    await relay({"type": "http", "method": "POST", "path": "/v1/traces", "headers": headers}, receive, send)
    (status,) = statuses
    return int(status)


class Forgetful(Sink):
    """Accepts calls, and keeps only the last one."""

    def submit(self, call: Any) -> None:
        self.calls = [call]


async def test_each_has_an_answer():
    """No answer is an internal error, memory does not grow, and a valid call after them all is mirrored."""
    chance = random.Random(16)
    sink = Forgetful()
    relay = Relay(sink, limits=LIMITS)
    answers: Counter[int] = Counter()
    before = 0
    for number in range(REQUESTS):
        # The first requests of each kind make room for the largest body that is accepted.
        kind, encoding, body = HUGE[number] if number < len(HUGE) else hostile(chance, number)
        answers[await answer_to(relay, chance, kind, encoding, body)] += 1
        if number == WARM_UP:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert set(answers) <= ANSWERS, answers
    assert sum(answers.values()) == REQUESTS
    assert min(answers[status] for status in (200, 400, 408, 413, 415)) > 0, answers
    # In kibibytes.
    assert grown * 1024 < MOST_GROWTH, answers
    last = [root(7, trace=7), attempt(8, 7, trace=7)]
    assert await answer_to(relay, random.Random(0), PROTOBUF, b"", protobuf_body(last)) == 200
    relay.close()
    assert sink.calls[-1].parent.trace_id == 7
