"""OTLP/HTTP's answers: ``ExportTraceServiceResponse`` on success, ``google.rpc.Status`` on failure."""

import json
from dataclasses import dataclass, field

from agent_gateway_client.server.asgi.exchange import Send

PROTOBUF = "application/x-protobuf"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response.

    Attributes:
        status: The HTTP status.
        body: The body.
        content_type: The body's content type.
        headers: Additional headers.
    """

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)

    async def send(self, send: Send) -> None:
        """Send it."""
        fields = {"content-type": self.content_type, "content-length": str(len(self.body)), **self.headers}
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def taken(rejected: int, content_type: str) -> Answer:
    """Return the answer to an accepted request: a partial success if spans were rejected."""
    why = "spans without valid ids, or more than one request may have"
    if content_type == JSON:
        partial = {"partialSuccess": {"rejectedSpans": str(rejected), "errorMessage": why}} if rejected else {}
        return Answer(200, json.dumps(partial).encode())
    partial_success = b"\x08" + _varint(rejected) + _text_field(2, why)
    return Answer(200, b"\x0a" + _varint(len(partial_success)) + partial_success if rejected else b"", PROTOBUF)


def refused(status: int, why: str, content_type: str, **headers: str) -> Answer:
    """Return the answer to a refused request.

    Args:
        status: The HTTP status.
        why: The reason, as a sentence for the sender's log.
        content_type: The request's; OTLP requires the same for the answer.
        headers: Additional headers; underscores stand for hyphens.
    """
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type == PROTOBUF:
        return Answer(status, _text_field(2, why), PROTOBUF, fields)
    return Answer(status, json.dumps({"message": why}).encode(), JSON, fields)


def _text_field(number: int, text: str) -> bytes:
    encoded = text.encode()
    return bytes([number << 3 | 2]) + _varint(len(encoded)) + encoded


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
