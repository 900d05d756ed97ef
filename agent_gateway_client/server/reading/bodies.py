"""The beginning and the end of a body, kept by reference while it passes, in bounded memory."""

import zlib
from typing import Any

HEAD_BYTES = 16 * 1024
"""Kept of a body's beginning. The model's name and Anthropic's ``message_start`` are there."""

TAIL_BYTES = 32 * 1024
"""Kept of a body's end, at least. Token usage is there."""

_TRIM_BYTES = 2 * TAIL_BYTES
"""The end is cut back to its size when it has grown to this, so that most chunks of a stream cost one comparison."""

MAX_COMPRESSED_BYTES = 1024 * 1024
"""Kept of a compressed body, whose end cannot be read without its beginning; what is longer is not read."""

MAX_EXPANDED_BYTES = 64 * 1024 * 1024
"""Bytes that a compressed body may grow to; what grows further is taken for an attack and not read."""

_CHUNK_OVERHEAD = 64
"""Bytes that a chunk takes beside its content, roughly; without it, a stream of tiny chunks would have no bound."""

_EXPANSION_STEP = 64 * 1024


class KeptBody:
    """The first and the last bytes of a body."""

    __slots__ = ("_head", "_head_room", "_tail", "_tail_size", "cut")

    def __init__(self) -> None:
        self.cut = False
        self._head: list[bytes] = []
        self._tail: list[bytes] = []
        self._head_room = HEAD_BYTES
        self._tail_size = 0

    def add(self, chunk: Any) -> None:
        """Take the next chunk: ``bytes``, or anything that ``bytes()`` takes."""
        if type(chunk) is not bytes:
            chunk = bytes(chunk)
        size = len(chunk)
        if self._head_room:
            if size <= self._head_room:
                self._head.append(chunk)
                self._head_room = max(0, self._head_room - size - _CHUNK_OVERHEAD)
                return
            self._head.append(chunk[: self._head_room])
            chunk = chunk[self._head_room :]
            size = len(chunk)
            self._head_room = 0
        if size > TAIL_BYTES:
            chunk = chunk[-TAIL_BYTES:]
            size = TAIL_BYTES
            # What came before does not go on here.
            self._tail, self._tail_size = [], 0
            self.cut = True
        self._tail.append(chunk)
        self._tail_size += size + _CHUNK_OVERHEAD
        if self._tail_size > _TRIM_BYTES:
            self._trim()

    def _trim(self) -> None:
        count = 0
        for chunk in self._tail:
            size = len(chunk) + _CHUNK_OVERHEAD
            if self._tail_size - size < TAIL_BYTES:
                break
            self._tail_size -= size
            count += 1
        del self._tail[:count]
        self.cut = self.cut or count > 0

    def ends(self) -> tuple[bytes, bytes]:
        """Return the first and the last bytes. Together they are the body, unless it was ``cut`` between them."""
        return b"".join(self._head), b"".join(self._tail)

    def last_chunks(self, count: int) -> bytes:
        """Return the last chunks, joined."""
        return b"".join((self._tail if self.cut else self._head + self._tail)[-count:])

    def clear(self) -> None:
        """Let go of everything."""
        # New objects: another thread may be reading the old ones.
        self._head, self._tail = [], []


class CompressedBody:
    """The bytes of a body in gzip or deflate, up to ``MAX_COMPRESSED_BYTES``."""

    __slots__ = ("_chunks", "_size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0

    def add(self, chunk: Any) -> None:
        """Take the next chunk: ``bytes``, or anything that ``bytes()`` takes."""
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
        """Return the beginning and the end of what was compressed, as far as it can be read."""
        kept = KeptBody()
        rest = b"".join(self._chunks)
        inflate = zlib.decompressobj(_window_bits(rest[:2]))
        room = MAX_EXPANDED_BYTES
        try:
            while rest:
                if inflate.eof:
                    # gzip may have several members (RFC 1952, 2.2); what else follows is passed over.
                    if not rest.startswith(_GZIP):
                        break
                    inflate = zlib.decompressobj(_window_bits(_GZIP))
                piece = inflate.decompress(rest, _EXPANSION_STEP)
                rest = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
                room -= len(piece)
                if room < 0:
                    return KeptBody()
                kept.add(piece)
            kept.add(inflate.flush())
        except zlib.error:
            # A stream that was broken off, or nothing compressed at all; what could be read is kept.
            return kept
        return kept

    def last_chunks(self, count: int) -> bytes:
        """Return nothing: what a compressed body ends with cannot be told from its last bytes."""
        return b""

    def clear(self) -> None:
        """Let go of everything."""
        self._chunks = []


_GZIP = b"\x1f\x8b"


def _window_bits(start: bytes) -> int:
    """Tell gzip, zlib and raw deflate apart; servers send both of the latter as ``deflate`` (RFC 9110, 8.4.1.2)."""
    if start == _GZIP:
        return zlib.MAX_WBITS | 16
    if len(start) == 2 and start[0] & 0x0F == 8 and int.from_bytes(start, "big") % 31 == 0:
        return zlib.MAX_WBITS
    return -zlib.MAX_WBITS
