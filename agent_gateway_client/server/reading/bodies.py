"""Keeps references to the start and the end of a body while it is passed on, in bounded memory."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any

HEAD_BYTES = 16 * 1024
"""Size of the kept start of a body, which has the model's name and Anthropic's ``message_start``."""

TAIL_BYTES = 32 * 1024
"""Minimum size of the kept end of a body, which has the token usage."""

_TRIM_BYTES = 2 * TAIL_BYTES
"""The end is trimmed when it reaches this size, so that most chunks of a stream cost one comparison."""

MAX_COMPRESSED_BYTES = 1024 * 1024
"""Maximum size of a compressed body that is read; its end cannot be read without its start."""

MAX_EXPANDED_BYTES = 64 * 1024 * 1024
"""Maximum expanded size of a compressed body; larger ones are treated as an attack and not read."""

_CHUNK_OVERHEAD = 64
"""Approximate memory of a chunk beside its content; without it, tiny chunks would be unbounded."""

_EXPANSION_STEP = 64 * 1024


class KeptBody:
    """The first and the last bytes of a body."""

    __slots__ = ("_head", "_head_room", "_tail", "_tail_size", "cut")

    def __init__(self) -> None:
        self.cut = False
        self._head: list[bytes] = []
        # Most bodies are short and have none.
        self._tail: list[bytes] | None = None
        self._head_room = HEAD_BYTES
        self._tail_size = 0

    def add(self, chunk: Any) -> None:
        """Add a chunk: ``bytes``, or anything that ``bytes()`` accepts."""
        if type(chunk) is not bytes:
            chunk = bytes(chunk)
        size = len(chunk)
        if self._head_room:
            if size <= self._head_room:
                self._head.append(chunk)
                room = self._head_room - size - _CHUNK_OVERHEAD
                self._head_room = room if room > 0 else 0
                return
            self._head.append(chunk[: self._head_room])
            chunk = chunk[self._head_room :]
            size = len(chunk)
            self._head_room = 0
        tail = self._tail
        if size > TAIL_BYTES:
            chunk = chunk[-TAIL_BYTES:]
            size = TAIL_BYTES
            # The earlier chunks are no longer adjacent.
            tail, self._tail_size = None, 0
            self.cut = True
        if tail is None:
            tail = self._tail = []
        tail.append(chunk)
        self._tail_size += size + _CHUNK_OVERHEAD
        if self._tail_size > _TRIM_BYTES:
            self._trim(tail)

    def _trim(self, tail: list[bytes]) -> None:
        count = 0
        for chunk in tail:
            size = len(chunk) + _CHUNK_OVERHEAD
            if self._tail_size - size < TAIL_BYTES:
                break
            self._tail_size -= size
            count += 1
        del tail[:count]
        self.cut = self.cut or count > 0

    def ends(self) -> tuple[bytes, bytes]:
        """Return the first and the last bytes. Together they are the whole body unless it was ``cut``."""
        return b"".join(self._head), b"".join(self._tail or ())

    def last_chunks(self, count: int) -> bytes:
        """Return the last chunks, joined."""
        tail = self._tail or []
        return b"".join((tail if self.cut else self._head + tail)[-count:])

    def clear(self) -> None:
        """Drop the content."""
        # New objects: another thread may be reading the old ones.
        self._head, self._tail = [], None


class CompressedBody:
    """The bytes of a compressed body, up to ``MAX_COMPRESSED_BYTES``.

    Args:
        encoding: A content encoding for which :func:`can_be_expanded` returns true.
    """

    __slots__ = ("_chunks", "_encoding", "_size")

    def __init__(self, encoding: bytes = b"gzip") -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self._encoding = encoding

    def add(self, chunk: Any) -> None:
        """Add a chunk: ``bytes``, or anything that ``bytes()`` accepts."""
        if self._size > MAX_COMPRESSED_BYTES:
            return
        if type(chunk) is not bytes:
            chunk = bytes(chunk)
        self._size += len(chunk) + _CHUNK_OVERHEAD
        if self._size > MAX_COMPRESSED_BYTES:
            self._chunks = []
        else:
            self._chunks.append(chunk)

    def expanded(self) -> KeptBody:
        """Return the start and the end of the expanded body, as far as it can be expanded."""
        kept = KeptBody()
        room = MAX_EXPANDED_BYTES
        try:
            for piece in _EXPAND[self._encoding](b"".join(self._chunks)):
                room -= len(piece)
                if room < 0:
                    return KeptBody()
                kept.add(piece)
        except Exception:
            # Each library raises its own errors for a truncated or invalid body; the part before is kept.
            return kept
        return kept

    def last_chunks(self, count: int) -> bytes:
        """Return nothing: the last bytes of a compressed body cannot be expanded alone."""
        return b""

    def clear(self) -> None:
        """Drop the content."""
        self._chunks = []


def can_be_expanded(encoding: bytes) -> bool:
    """Return whether a ``Content-Encoding`` can be expanded; brotli and zstd need their packages."""
    return encoding in _EXPAND and (encoding not in _PACKAGES or _package_of(encoding) is not None)


_GZIP = b"\x1f\x8b"


def _inflated(data: bytes) -> Iterator[bytes]:
    inflate = zlib.decompressobj(_window_bits(data[:2]))
    while data:
        if inflate.eof:
            # gzip may have several members (RFC 1952, 2.2); other trailing data is ignored.
            if not data.startswith(_GZIP):
                break
            inflate = zlib.decompressobj(_window_bits(_GZIP))
        yield inflate.decompress(data, _EXPANSION_STEP)
        data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    yield inflate.flush()


def _window_bits(start: bytes) -> int:
    """Detect gzip, zlib or raw deflate; servers send both of the latter as ``deflate`` (RFC 9110, 8.4.1.2)."""
    if start == _GZIP:
        return zlib.MAX_WBITS | 16
    if len(start) == 2 and start[0] & 0x0F == 8 and int.from_bytes(start, "big") % 31 == 0:
        return zlib.MAX_WBITS
    return -zlib.MAX_WBITS


def _from_brotli(data: bytes) -> Iterator[bytes]:
    expander = import_module(_package_of(b"br") or "brotli").Decompressor()
    # In small pieces, to bound the output: brotli before 1.2 cannot limit it.
    for at in range(0, len(data), _BROTLI_STEP):
        yield expander.process(data[at : at + _BROTLI_STEP])


_BROTLI_STEP = 64


def _from_zstd(data: bytes) -> Iterator[bytes]:
    name = _package_of(b"zstd") or "zstandard"
    package = import_module(name)
    if name == "zstandard":
        reader = package.ZstdDecompressor().stream_reader(BytesIO(data), read_across_frames=True)
    else:
        reader = package.ZstdFile(BytesIO(data))
    while piece := reader.read(_EXPANSION_STEP):
        yield piece


_EXPAND: dict[bytes, Callable[[bytes], Iterator[bytes]]] = {
    b"gzip": _inflated,
    b"x-gzip": _inflated,
    b"deflate": _inflated,
    b"br": _from_brotli,
    b"zstd": _from_zstd,
}
_PACKAGES = {
    b"br": ("brotli", "brotlicffi"),
    b"zstd": ("zstandard", "compression.zstd", "backports.zstd"),
}


@cache
def _package_of(encoding: bytes) -> str | None:
    for name in _PACKAGES[encoding]:
        with suppress(ImportError):
            if find_spec(name) is not None:
                return name
    return None
