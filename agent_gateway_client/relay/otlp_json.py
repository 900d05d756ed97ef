"""Decodes OTLP's JSON encoding: ids are hexadecimal, 64-bit numbers are strings, enums are numbers."""

import json
import math
import re
from collections.abc import Collection, Iterator
from typing import Any

from agent_gateway_client.relay.spans import (
    ERROR,
    MAX_JSON,
    MAX_TEXT,
    RESOURCE_KEYS,
    SERVER,
    Batch,
    IncomingSpan,
    MalformedBody,
    Resource,
    Value,
)

_HEX = {16: re.compile(r"[0-9a-fA-F]{32}\Z"), 8: re.compile(r"[0-9a-fA-F]{16}\Z")}
_NUMBER = re.compile(r"-?[0-9]{1,20}\Z")
_MAX = (1 << 64) - 1
_KINDS = {"SPAN_KIND_SERVER": SERVER}
_STATUSES = {"STATUS_CODE_ERROR": ERROR}
"""Enums by name. OTLP requires numbers; protobuf's JSON encoders write names."""


def read_request(
    body: bytes, keys: Collection[str], names: Collection[str], max_spans: int, max_attributes: int
) -> Batch:
    """Decode a JSON request; see :func:`agent_gateway_client.relay.protobuf.read_request`.

    Raises:
        MalformedBody: The body is not JSON, or not an OTLP request.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"not JSON ({type(error).__name__})") from None
    batch = Batch()
    for resource_spans in _objects(request, "resourceSpans"):
        resource = _resource(resource_spans.get("resource"), names, max_attributes)
        for scope_spans in _objects(resource_spans, "scopeSpans"):
            scope = scope_spans.get("scope")
            scope_name = _known(scope.get("name") if isinstance(scope, dict) else "", names)
            for one in _objects(scope_spans, "spans"):
                span = _span(one, keys, max_attributes) if len(batch.spans) < max_spans else None
                if span is None:
                    batch.rejected += 1
                else:
                    span.resource, span.scope = resource, scope_name
                    batch.spans.append(span)
    return batch


def _objects(parent: Any, member: str) -> Iterator[dict[str, Any]]:
    """Iterate over the objects of an array.

    Raises:
        MalformedBody: The member is not an array of objects.
    """
    if not isinstance(parent, dict):
        raise MalformedBody("not an object")
    children = parent.get(member)
    if children is None:
        return
    if not isinstance(children, list):
        raise MalformedBody(f"{member} is not an array")
    for child in children:
        if not isinstance(child, dict):
            raise MalformedBody(f"{member} holds what is not an object")
        yield child


def _resource(resource: Any, names: Collection[str], max_attributes: int) -> Resource:
    attributes = _attributes(resource, RESOURCE_KEYS, max_attributes) if isinstance(resource, dict) else {}
    return Resource.of(attributes, names)


def _known(name: Any, names: Collection[str]) -> str:
    return name if isinstance(name, str) and name in names else ""


def _span(span: dict[str, Any], keys: Collection[str], max_attributes: int) -> IncomingSpan | None:
    trace_id, span_id = _id(span.get("traceId"), 16), _id(span.get("spanId"), 8)
    if not trace_id or not span_id:
        return None
    status = span.get("status")
    name = span.get("name")
    return IncomingSpan(
        trace_id,
        span_id,
        parent_id=_id(span.get("parentSpanId"), 8),
        name=name if isinstance(name, str) and len(name) <= MAX_TEXT else "",
        kind=_enum(span.get("kind"), _KINDS),
        flags=_integer(span.get("flags")),
        start_ns=_integer(span.get("startTimeUnixNano")),
        end_ns=_integer(span.get("endTimeUnixNano")),
        failed=isinstance(status, dict) and _enum(status.get("code"), _STATUSES) == ERROR,
        attributes=_attributes(span, keys, max_attributes),
        link=next((link for one in _objects(span, "links") if (link := _link(one))), None),
    )


def _link(link: dict[str, Any]) -> tuple[int, int] | None:
    trace_id, span_id = _id(link.get("traceId"), 16), _id(link.get("spanId"), 8)
    return (trace_id, span_id) if trace_id and span_id else None


def _attributes(owner: dict[str, Any], keys: Collection[str], most: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for index, attribute in enumerate(_objects(owner, "attributes")):
        if index >= most:
            break
        key = attribute.get("key")
        if isinstance(key, str) and key in keys and (value := _value(attribute.get("value"))) is not None:
            found[key] = value
    return found


def _value(value: Any, depth: int = 0) -> Value | None:
    if not isinstance(value, dict):
        return None
    if isinstance(text := value.get("stringValue"), str):
        return text if len(text) <= MAX_JSON else None
    if isinstance(flag := value.get("boolValue"), bool):
        return flag
    if "intValue" in value:
        return _signed(value["intValue"])
    if "doubleValue" in value:
        return _float(value["doubleValue"])
    if isinstance(array := value.get("arrayValue"), dict) and not depth:
        return next((_value(one, depth=1) for one in _objects(array, "values")), None)
    return None


def _id(text: Any, size: int) -> int:
    """Return an id; 0 if it is not valid."""
    return int(text, 16) if isinstance(text, str) and _HEX[size].match(text) else 0


def _integer(value: Any) -> int:
    """Return an unsigned 64-bit number; 0 for anything else."""
    number = _signed(value)
    return number if number is not None and 0 <= number <= _MAX else 0


def _enum(value: Any, names: dict[str, int]) -> int:
    return names.get(value, 0) if isinstance(value, str) and not value.isdecimal() else _integer(value)


def _signed(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and _NUMBER.match(value):
        value = int(value)
    return value if isinstance(value, int) and -_MAX <= value <= _MAX else None


def _float(value: Any) -> float | None:
    # JSON can write a number that is not finite only as a string.
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value) else None


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
