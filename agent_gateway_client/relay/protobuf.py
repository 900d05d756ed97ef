"""Decodes OTLP's protobuf encoding, field by field.

Only what is needed is decoded. An attribute's value is read if its key is a known one; of all other attributes, of
events and of status messages, only the length is read. This keeps payloads out of memory and bounds the cost of a
hostile body. Field numbers are those of ``opentelemetry/proto/trace/v1``.
"""

import struct
from collections.abc import Callable, Collection, Iterator

from agent_gateway_client.relay.spans import (
    ERROR,
    MAX_JSON,
    MAX_TEXT,
    NO_RESOURCE,
    RESOURCE_KEYS,
    Batch,
    IncomingSpan,
    MalformedBody,
    Resource,
    Value,
)

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_MAX_FIELDS = 4_000_000
"""Fields per body. Twenty megabytes can hold ten million empty ones, which would keep a core busy for too long."""

_ARRAY_DEPTH = 1
_KEY_TAG = 1 << 3 | _LENGTH

Field = tuple[int, int, int, int]
"""Number and wire type; then the first and the last position of a length-delimited field, or a value and 0."""


def read_request(
    body: bytes, keys: Collection[str], names: Collection[str], max_spans: int, max_attributes: int
) -> Batch:
    """Decode an ``ExportTraceServiceRequest``.

    Args:
        body: The message.
        keys: The attributes to decode.
        names: Service and scope names to keep.
        max_spans: Spans to decode at most.
        max_attributes: Attributes to examine per span.

    Raises:
        MalformedBody: The body is not such a message.
    """
    reader = _Reader(body, _by_bytes(keys), names, max_attributes)
    batch = Batch()
    for number, wire, begin, end in reader.fields(0, len(body)):
        if (number, wire) == (1, _LENGTH):
            reader.resource_spans(begin, end, batch, max_spans)
    return batch


def _by_bytes(keys: Collection[str]) -> dict[bytes, str]:
    return {key.encode(): key for key in keys}


_RESOURCE_KEYS = _by_bytes(RESOURCE_KEYS)


class _Reader:
    def __init__(self, body: bytes, keys: dict[bytes, str], names: Collection[str], max_attributes: int) -> None:
        self._body = body
        self._keys = keys
        self._names = names
        self._max_attributes = max_attributes
        self._fields_left = _MAX_FIELDS

    def resource_spans(self, begin: int, end: int, batch: Batch, max_spans: int) -> None:
        # The resource need not come first.
        resources = (
            self._resource(*at) for number, wire, *at in self.fields(begin, end) if (number, wire) == (1, _LENGTH)
        )
        resource = next(resources, NO_RESOURCE)
        for number, wire, first, last in self.fields(begin, end):
            if (number, wire) == (2, _LENGTH):
                self._scope_spans(first, last, resource, batch, max_spans)

    def _resource(self, begin: int, end: int) -> Resource:
        attributes: dict[str, Value] = {}
        for number, wire, first, last in self.fields(begin, end):
            if (number, wire) == (1, _LENGTH):
                self._attribute(first, last, attributes, _RESOURCE_KEYS)
        return Resource.of(attributes, self._names)

    def _scope_spans(self, begin: int, end: int, resource: Resource, batch: Batch, max_spans: int) -> None:
        scopes = (self._scope(*at) for number, wire, *at in self.fields(begin, end) if (number, wire) == (1, _LENGTH))
        scope = next(scopes, "")
        for number, wire, first, last in self.fields(begin, end):
            if (number, wire) == (2, _LENGTH):
                span = self._span(first, last) if len(batch.spans) < max_spans else None
                if span is None:
                    batch.rejected += 1
                else:
                    span.resource, span.scope = resource, scope
                    batch.spans.append(span)

    def _scope(self, begin: int, end: int) -> str:
        for number, wire, first, last in self.fields(begin, end):
            if (number, wire) == (1, _LENGTH):
                name = self._text(first, last, MAX_TEXT)
                return name if name is not None and name in self._names else ""
        return ""

    def _span(self, begin: int, end: int) -> IncomingSpan | None:
        span = IncomingSpan(0, 0)
        looked_at = 0
        for number, wire, first, last in self.fields(begin, end):
            if number == 9 and wire == _LENGTH:
                looked_at += 1
                if looked_at <= self._max_attributes:
                    self._attribute(first, last, span.attributes, self._keys)
            elif number == 13 and wire == _LENGTH:
                span.link = span.link or self.link_at(first, last)
            elif (field := _SPAN_FIELDS.get((number, wire))) is not None:
                name, decode = field
                setattr(span, name, decode(self, first, last))
        return span if span.trace_id and span.span_id else None

    def _attribute(self, begin: int, end: int, attributes: dict[str, Value], keys: dict[bytes, str]) -> None:
        if self._is_other(begin, end, keys):
            return
        key, at = self._key(begin, end)
        name = keys.get(key)
        if name is not None and at is not None and (value := self._value(*at)) is not None:
            attributes[name] = value

    def _is_other(self, begin: int, end: int, keys: dict[bytes, str]) -> bool:
        """Tell from the first bytes of a ``KeyValue`` whether it can be skipped; where they do not tell, it cannot.

        Nearly always the key comes first and is short, and most attributes are not read.
        """
        body = self._body
        if end - begin < 2 or body[begin] != _KEY_TAG:
            return False
        first = begin + 2
        last = first + body[begin + 1]
        return body[begin + 1] < 0x80 and last <= end and body[first:last] not in keys

    def _key(self, begin: int, end: int) -> tuple[bytes, tuple[int, int] | None]:
        """Return the key of a ``KeyValue`` and the position of its value."""
        key, at = b"", None
        for number, wire, first, last in self.fields(begin, end):
            if (number, wire) == (1, _LENGTH):
                key = self._body[first:last] if last - first <= MAX_TEXT else b""
            elif (number, wire) == (2, _LENGTH):
                at = first, last
        return key, at

    def _value(self, begin: int, end: int, depth: int = 0) -> Value | None:
        value: Value | None = None
        for number, wire, first, last in self.fields(begin, end):
            if (number, wire) == (1, _LENGTH):
                value = self._text(first, last, MAX_JSON)
            elif (number, wire) == (2, _VARINT):
                value = bool(first)
            elif (number, wire) == (3, _VARINT):
                value = first - (1 << 64) if first >> 63 else first
            elif (number, wire) == (4, _FIXED64):
                value = float(struct.unpack("<d", first.to_bytes(8, "little"))[0])
            elif (number, wire) == (5, _LENGTH) and depth < _ARRAY_DEPTH:
                value = self._first(first, last)
        return value

    def _first(self, begin: int, end: int) -> Value | None:
        for number, wire, first, last in self.fields(begin, end):
            if (number, wire) == (1, _LENGTH):
                return self._value(first, last, depth=_ARRAY_DEPTH)
        return None

    def _text(self, begin: int, end: int, most: int) -> str | None:
        """Return a text; ``None`` if it is too long or not UTF-8."""
        if end - begin > most:
            return None
        try:
            return self._body[begin:end].decode()
        except UnicodeDecodeError:
            return None

    def fields(self, at: int, end: int) -> Iterator[Field]:
        """Iterate over the fields of a message without decoding nested messages."""
        body = self._body
        while at < end:
            # Most numbers take one byte, for which calling _varint() would cost more than everything else here.
            if (tag := body[at]) < 0x80:
                at += 1
            else:
                tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            self._fields_left -= 1
            if not number or self._fields_left < 0:
                raise MalformedBody("a field has the number 0" if not number else "too many fields")
            if wire == _LENGTH:
                if at < end and (length := body[at]) < 0x80:
                    at += 1
                else:
                    length, at = self._varint(at, end)
                if length > end - at:
                    raise MalformedBody("a field is longer than its message")
                yield number, wire, at, at + length
                at += length
            elif wire == _VARINT:
                value, at = self._varint(at, end)
                yield number, wire, value, 0
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
                if size > end - at:
                    raise MalformedBody("a number is cut off")
                yield number, wire, int.from_bytes(body[at : at + size], "little"), 0
                at += size
            else:
                raise MalformedBody(f"wire type {wire} is not in use")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            if at >= end:
                break
            byte = self._body[at]
            at += 1
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
        raise MalformedBody("a number does not end")

    def id_at(self, begin: int, end: int, size: int) -> int:
        """Return an id; 0 if its size is wrong."""
        return int.from_bytes(self._body[begin:end], "big") if end - begin == size else 0

    def name_at(self, begin: int, end: int) -> str:
        """Return a span's name; empty if it is long, since no known name is."""
        return self._text(begin, end, MAX_TEXT) or ""

    def status_at(self, begin: int, end: int) -> bool:
        """Return whether a status is ERROR."""
        return any(field[:3] == (3, _VARINT, ERROR) for field in self.fields(begin, end))

    def link_at(self, begin: int, end: int) -> tuple[int, int] | None:
        """Return a link's trace id and span id."""
        trace_id = span_id = 0
        for number, wire, first, last in self.fields(begin, end):
            if (number, wire) == (1, _LENGTH):
                trace_id = self.id_at(first, last, 16)
            elif (number, wire) == (2, _LENGTH):
                span_id = self.id_at(first, last, 8)
        return (trace_id, span_id) if trace_id and span_id else None


_SPAN_FIELDS: dict[tuple[int, int], tuple[str, Callable[[_Reader, int, int], object]]] = {
    (1, _LENGTH): ("trace_id", lambda reader, begin, end: reader.id_at(begin, end, 16)),
    (2, _LENGTH): ("span_id", lambda reader, begin, end: reader.id_at(begin, end, 8)),
    (4, _LENGTH): ("parent_id", lambda reader, begin, end: reader.id_at(begin, end, 8)),
    (5, _LENGTH): ("name", _Reader.name_at),
    (6, _VARINT): ("kind", lambda reader, value, _: value),
    (7, _FIXED64): ("start_ns", lambda reader, value, _: value),
    (8, _FIXED64): ("end_ns", lambda reader, value, _: value),
    (15, _LENGTH): ("failed", _Reader.status_at),
    (16, _FIXED32): ("flags", lambda reader, value, _: value),
}
"""The attributes of :class:`IncomingSpan`, by field number and wire type, and how they are decoded."""
