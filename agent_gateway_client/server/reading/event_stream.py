"""Amazon's binary event streams (``application/vnd.amazon.eventstream``), which Bedrock sends.

A message has its length, the length of its headers, a checksum of both (4 bytes each), the headers, the payload, and a
checksum of the whole message.
"""

import base64
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_PRELUDE = struct.Struct(">III")
_CHECKSUM_BYTES = 4
_STRING = 7
_EXCEPTION = b":exception-type"


class Message(NamedTuple):
    """A message of a stream.

    Attributes:
        payload: A JSON object, as bytes.
        exception: The class of the exception that ended the stream; ``None`` for an event.
    """

    payload: bytes
    exception: str | None


def begins(head: bytes) -> bool:
    """Return whether a body with this start is an event stream."""
    return _length_at(head, 0) is not None


def messages(head: bytes, tail: bytes | None) -> Iterator[Message]:
    """Yield the complete messages.

    Args:
        head: The start of the body, or all of it.
        tail: The end of the body if it was cut; it may start within a message.
    """
    yield from _messages(head, 0)
    if tail is not None:
        start = next((at for at in range(len(tail)) if _length_at(tail, at) is not None), len(tail))
        yield from _messages(tail, start)


def chunk_of(payload: object) -> bytes | None:
    """Return the model's event, which Bedrock's InvokeModel wraps in base64."""
    wrapped = payload.get("bytes") if isinstance(payload, dict) else None
    if not isinstance(wrapped, str):
        return None
    try:
        return base64.b64decode(wrapped)
    except ValueError:
        return None


def _messages(data: bytes, at: int) -> Iterator[Message]:
    while (length := _length_at(data, at)) is not None and at + length <= len(data):
        headers_length = _PRELUDE.unpack_from(data, at)[1]
        start = at + _PRELUDE.size + headers_length
        headers = data[at + _PRELUDE.size : start]
        end = at + length - _CHECKSUM_BYTES
        if zlib.crc32(data[at:end]) != int.from_bytes(data[end : at + length], "big"):
            return
        yield Message(data[start:end], _exception_in(headers))
        at += length


def _length_at(data: bytes, at: int) -> int | None:
    """Return the length of the message that starts at a position; ``None`` if none does."""
    if len(data) < at + _PRELUDE.size:
        return None
    length, headers_length, checksum = _PRELUDE.unpack_from(data, at)
    if length < headers_length + _PRELUDE.size + _CHECKSUM_BYTES or zlib.crc32(data[at : at + 8]) != checksum:
        return None
    return int(length)


def _exception_in(headers: bytes) -> str | None:
    at = 0
    while at < len(headers):
        name = headers[at + 1 : at + 1 + headers[at]]
        at += 1 + len(name)
        # Bedrock's headers are all strings.
        if headers[at : at + 1] != bytes([_STRING]) or len(headers) < at + 3:
            return None
        size = int.from_bytes(headers[at + 1 : at + 3], "big")
        if name == _EXCEPTION:
            return headers[at + 3 : at + 3 + size].decode("ascii", "replace")
        at += 3 + size
    return None
