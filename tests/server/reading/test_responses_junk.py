"""responses.py: for malformed responses only counts and names are returned, or nothing."""

import dataclasses
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_gateway_client.server.reading.bodies import KeptBody
from agent_gateway_client.server.reading.responses import ResponseFacts, read_requested_model, read_response
from tests.support.wire_samples import SAMPLES


def kept(*chunks: bytes) -> KeptBody:
    body = KeptBody()
    for chunk in chunks:
        body.add(chunk)
    return body


def assert_harmless(facts: ResponseFacts) -> None:
    """Assert that there is nothing but counts and names of the strict forms."""
    assert facts.model is None or re.fullmatch(r"[A-Za-z0-9._:/@-]{1,200}", facts.model)
    assert facts.finish_reason is None or re.fullmatch(r"[A-Za-z_]{1,40}", facts.finish_reason)
    assert facts.error_type is None or re.fullmatch(r"[A-Za-z_]{1,100}|[45]\d\d", facts.error_type)
    counts = dataclasses.astuple(facts.usage) if facts.usage else ()
    assert all(count is None or (type(count) is int and count >= 0) for count in counts)


@given(st.binary(max_size=400) | st.text(alphabet='{}[]":,\\ntrudaseg01 ', max_size=300).map(str.encode), st.booleans())
def test_junk(body: bytes, streaming: bool):
    """Random bytes raise nothing."""
    assert_harmless(read_response(kept(body), streaming=streaming))
    read_requested_model(kept(body))


@settings(deadline=None)
@given(st.sampled_from(sorted(SAMPLES)), st.integers(0, 2**32), st.booleans())
def test_damaged_responses(name: str, seed: int, streaming: bool):
    """Responses with bytes lost, doubled or changed raise nothing, cut or not, and no text leaks."""
    rng = random.Random(seed)
    body = bytearray(SAMPLES[name].body)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(body))
        piece = bytes(body[at : at + rng.randint(0, 40)])
        body[at : at + rng.randint(0, 40)] = rng.choice([b"", piece * 2, rng.randbytes(3), b'"', b"{", b"\\"])
    middle = rng.choice([b"", b" " * 70_000])
    facts = read_response(
        kept(bytes(body[: len(body) // 2]), middle, bytes(body[len(body) // 2 :])), streaming=streaming
    )
    assert_harmless(facts)


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 200_000, b'{"usage":' + b"[" * 40_000])
@pytest.mark.parametrize("streaming", [False, True])
def test_deep_nesting(body: bytes, streaming: bool):
    """Values nested too deeply are skipped."""
    assert read_response(kept(b"data: " + body if streaming else body), streaming=streaming) == ResponseFacts()
