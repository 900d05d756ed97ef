"""Receives and decompresses a request's body within bounds."""

import zlib
from collections.abc import Callable

from agent_gateway_client.relay.spans import MalformedBody
from agent_gateway_client.server.asgi.exchange import Receive

_GZIP = 16 + zlib.MAX_WBITS
_CHUNK = 1024 * 1024


class TooLarge(Exception):
    """The body exceeds the limit, before or after decompression."""


class ClientGone(Exception):
    """The client disconnected before the body was complete."""


async def receive_body(receive: Receive, most: int, reserve: Callable[[int], None]) -> bytes:
    """Receive a body.

    Args:
        receive: ASGI's.
        most: The largest size, in bytes.
        reserve: Called with the length of each chunk before it is kept; may raise.

    Raises:
        TooLarge: The body is larger than that.
        ClientGone: The client disconnected.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        if len(body) + len(piece) > most:
            raise TooLarge
        reserve(len(piece))
        body += piece
        if not message.get("more_body", False):
            return bytes(body)


def decompress(body: bytes, most: int) -> bytes:
    """Decompress a gzip body, which may have several members.

    Raises:
        TooLarge: The result is larger than ``most`` bytes.
        MalformedBody: The body is not gzip, or is truncated.
    """
    pieces = bytearray()
    while body:
        member = zlib.decompressobj(_GZIP)
        try:
            while not member.eof:
                piece = member.decompress(body, _CHUNK)
                body = member.unconsumed_tail
                pieces += piece
                if len(pieces) > most:
                    raise TooLarge
                if not piece and not body and not member.eof:
                    raise MalformedBody("the gzip body is cut off")
        except zlib.error:
            raise MalformedBody("not gzip") from None
        body = member.unused_data
    return bytes(pieces)
