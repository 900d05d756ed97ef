"""A request's body: received and decompressed within bounds."""

import zlib
from collections.abc import Callable

from agent_gateway_client.relay.asgi_types import Receive
from agent_gateway_client.relay.spans import MalformedBody

_GZIP = 16 + zlib.MAX_WBITS
_CHUNK = 1024 * 1024


class TooLarge(Exception):
    """The body, or what it decompresses to, is beyond the bound."""


class ClientGone(Exception):
    """The client hung up before its body was complete."""


async def receive_body(receive: Receive, most: int, reserve: Callable[[int], None]) -> bytes:
    """Receive a body.

    Args:
        receive: ASGI's.
        most: Bytes to take.
        reserve: Called with the length of each piece before it is kept; may raise.

    Raises:
        TooLarge: There is more.
        ClientGone: It will not become complete.
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
    """Return what a gzip body holds; several members are one after the other, as gzip allows.

    Raises:
        TooLarge: It is more than ``most`` bytes.
        MalformedBody: It is not gzip, or cut off.
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
