"""bodies.py: what is kept of a body, and its size limit."""

import contextlib
import gzip
import importlib
import os
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_gateway_client.server.reading import bodies
from agent_gateway_client.server.reading.bodies import (
    HEAD_BYTES,
    MAX_COMPRESSED_BYTES,
    MAX_EXPANDED_BYTES,
    TAIL_BYTES,
    CompressedBody,
    KeptBody,
    can_be_expanded,
)

MOST = HEAD_BYTES + 3 * TAIL_BYTES
"""The maximum of content that is kept of any body, in bytes."""


def kept(chunks: list[bytes]) -> KeptBody:
    body = KeptBody()
    for chunk in chunks:
        body.add(chunk)
    return body


@given(st.lists(st.integers(1, 40_000), max_size=12))
def test_the_two_ends_are_kept(sizes: list[int]):
    """The first and last bytes are kept, however the chunks are split; all bytes if nothing was cut."""
    whole = random.Random(0).randbytes(sum(sizes))
    at = 0
    chunks = []
    for size in sizes:
        chunks.append(whole[at : at + size])
        at += size
    body = kept(chunks)
    head, tail = body.ends()
    assert len(head) + len(tail) <= MOST
    if body.cut:
        assert len(head) + len(tail) < len(whole)
        assert whole.startswith(head)
        assert whole.endswith(tail)
        assert len(tail) >= TAIL_BYTES * 0.9
    else:
        assert head + tail == whole
    assert whole.endswith(body.last_chunks(4))


def test_a_small_body_is_not_cut():
    """A body of a few kilobytes is kept whole."""
    body = kept([b"x" * 5_000] * 6)
    assert not body.cut
    assert b"".join(body.ends()) == b"x" * 30_000


def test_one_huge_chunk():
    """Of a 10 MB chunk only the two ends are kept."""
    body = kept([b"a" * 5_000_000 + b"b" * 5_000_000])
    head, tail = body.ends()
    assert body.cut
    assert (head, tail) == (b"a" * HEAD_BYTES, b"b" * TAIL_BYTES)


@pytest.mark.slow
def test_tiny_chunks_count_for_what_they_take():
    """A million chunks of two bytes are limited in number, not only in content."""
    body = kept([b"%02d" % (number % 100) for number in range(1_000_000)])
    assert body.cut
    assert sum(map(len, body.ends())) < MOST / 20


def test_other_bytes_are_copied():
    """A bytearray or memoryview, which the server may reuse, is copied."""
    buffer = bytearray(b"before")
    body = kept([])
    body.add(buffer)
    body.add(memoryview(buffer))
    buffer[:] = b"after!"
    assert body.ends()[0] == b"beforebefore"


def test_cleared():
    """A cleared body holds nothing."""
    body = kept([b"x" * 100_000])
    body.clear()
    assert body.ends() == (b"", b"")


COMPRESSIONS = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "raw deflate": lambda data: zlib.compress(data, wbits=-15),
}


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_compressed(name: str, size: int):
    """A compressed body is read in each encoding, however it was split into chunks."""
    data = b"".join(b'{"number": %d}' % number for number in range(2_000))
    packed = COMPRESSIONS[name](data)
    body = CompressedBody()
    for at in range(0, len(packed), size):
        body.add(packed[at : at + size])
    expanded = body.expanded()
    assert not expanded.cut
    assert b"".join(expanded.ends()) == data


OPTIONAL = {b"br": ("brotli", "brotlicffi"), b"zstd": ("zstandard", "backports.zstd", "compression.zstd")}
"""Content encodings that are read if one of these packages is installed."""


def pack(encoding: bytes, data: bytes) -> bytes:
    """Compress with the installed package, or skip the test if there is none."""
    for name in OPTIONAL[encoding]:
        with contextlib.suppress(ImportError):
            package = importlib.import_module(name)
            made: bytes = package.ZstdCompressor().compress(data) if name == "zstandard" else package.compress(data)
            return made
    pytest.skip(f"none of {', '.join(OPTIONAL[encoding])} is in this environment's constraints file")


@pytest.mark.parametrize("encoding", OPTIONAL)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_compressed_by_a_package(encoding: bytes, size: int):
    """Brotli and zstd are read if their packages are installed, in one piece or several, and if broken off."""
    data = b"".join(b'{"number": %d}' % number for number in range(2_000))
    packed = pack(encoding, data)
    assert can_be_expanded(encoding)
    body = CompressedBody(encoding)
    for at in range(0, len(packed), size):
        body.add(packed[at : at + size])
    assert b"".join(body.expanded().ends()) == data
    broken = CompressedBody(encoding)
    broken.add(packed[: len(packed) // 2])
    assert data.startswith(broken.expanded().ends()[0])
    junk = CompressedBody(encoding)
    junk.add(b"junk")
    assert junk.expanded().ends() == (b"", b"")


@pytest.mark.parametrize("encoding", OPTIONAL)
def test_a_bomb_of_a_package(encoding: bytes):
    """A body that expands a thousandfold is dropped at the limit for these encodings too."""
    body = CompressedBody(encoding)
    body.add(pack(encoding, b"\x00" * (MAX_EXPANDED_BYTES + 1_000_000)))
    assert body.expanded().ends() == (b"", b"")


@pytest.mark.parametrize("encoding", OPTIONAL)
def test_a_package_that_is_missing(encoding: bytes, monkeypatch: pytest.MonkeyPatch):
    """Without a package such a body is not kept."""
    monkeypatch.setattr(bodies, "find_spec", lambda name: None)
    bodies._package_of.cache_clear()
    try:
        assert not can_be_expanded(encoding)
        assert can_be_expanded(b"gzip")
    finally:
        bodies._package_of.cache_clear()
    assert not can_be_expanded(b"compress")


def test_several_frames_of_zstd():
    """A body may be compressed in pieces, one after another (RFC 8878, 3)."""
    body = CompressedBody(b"zstd")
    body.add(pack(b"zstd", b"one ") + pack(b"zstd", b"two"))
    assert b"".join(body.expanded().ends()) == b"one two"


def test_several_gzip_members():
    """A body may be compressed in pieces, one after another (RFC 1952, 2.2)."""
    body = CompressedBody()
    body.add(gzip.compress(b"one ") + gzip.compress(b"two ") + gzip.compress(b"three") + b"\x00 padding")
    assert b"".join(body.expanded().ends()) == b"one two three"


def test_a_compressed_body_that_was_broken_off():
    """The part before the break is read."""
    data = os.urandom(9_000) + b"the end"
    body = CompressedBody()
    body.add(gzip.compress(data)[:5_000])
    assert data.startswith(body.expanded().ends()[0])
    assert len(body.expanded().ends()[0]) > 4_000


@pytest.mark.parametrize("junk", [b"", b"\x1f", b"\x1f\x8b", b"\x1f\x8bjunk", b"\x78\x9cjunk", b"junk", b"\x00" * 50])
def test_what_is_not_compressed(junk: bytes):
    """Bytes that are not compressed raise no error."""
    body = CompressedBody()
    body.add(junk)
    assert len(b"".join(body.expanded().ends())) < 100


def test_a_large_compressed_body_is_let_go():
    """Above the limit nothing is kept, and no more is accepted."""
    body = CompressedBody()
    for _ in range(20):
        body.add(os.urandom(MAX_COMPRESSED_BYTES // 10))
    assert body.expanded().ends() == (b"", b"")


@pytest.mark.slow
def test_a_bomb():
    """A body that expands a thousandfold is dropped at the limit."""
    body = CompressedBody()
    body.add(gzip.compress(b"\x00" * (MAX_EXPANDED_BYTES + 1_000_000)))
    assert body.expanded().ends() == (b"", b"")
