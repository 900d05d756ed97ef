"""W3C Trace Context: parses and formats ``traceparent`` and ``tracestate``. Pure functions.

Specification: https://www.w3.org/TR/trace-context-2/.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

MAX_TRACESTATE_MEMBERS = 32
MAX_TRACESTATE_LENGTH = 8192
"""Characters. W3C requires at least 512; a longer value is treated as an attack."""

_PARENT_LENGTH = len(TRACEPARENT)
_STATE_LENGTH = len(TRACESTATE)
_SAMPLED = 0x01
_FLAGS = [f"{flags:02x}" for flags in range(256)]

_IDS_AND_FLAGS = r"-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
_VERSION_00 = re.compile(rf"[ \t]*00{_IDS_AND_FLAGS}[ \t]*\Z")
_LATER_VERSION = re.compile(rf"[ \t]*(?!00|ff)[0-9a-f]{{2}}{_IDS_AND_FLAGS}(?:-.*|[ \t]*)\Z")
_TRACESTATE_KEY = r"[a-z0-9][a-z0-9_\-*/@]{0,255}"
_TRACESTATE_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_TRACESTATE_MEMBER = re.compile(rf"({_TRACESTATE_KEY})={_TRACESTATE_VALUE}\Z")


class _Fields(NamedTuple):
    trace_id: int
    span_id: int
    flags: int
    tracestate: str = ""


class TraceContext(_Fields):
    """A span as another process sees it.

    Attributes:
        trace_id: 128 bits, never 0.
        span_id: 64 bits, never 0. W3C calls it the parent id.
        flags: 8 bits; the lowest one means that the trace is sampled.
        tracestate: The vendors' members as a header value, or ``""``.
    """

    @property
    def sampled(self) -> bool:
        """Whether the caller records this trace. Other flags (random) are ignored."""
        return bool(self.flags & _SAMPLED)

    @cached_property
    def traceparent(self) -> str:
        """The value of the ``traceparent`` header, version 00. Kept, because a span often sends several requests."""
        # Three times faster than string formatting.
        trace_id, span_id = self.trace_id.to_bytes(16, "big").hex(), self.span_id.to_bytes(8, "big").hex()
        return f"00-{trace_id}-{span_id}-{_FLAGS[self.flags]}"

    def to_headers(self) -> dict[str, str]:
        """Return ``traceparent``, and ``tracestate`` if it is not empty, with lower-case names."""
        if self.tracestate:
            return {TRACEPARENT: self.traceparent, TRACESTATE: self.tracestate}
        return {TRACEPARENT: self.traceparent}


def extract(headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]) -> TraceContext | None:
    """Read the remote parent from request headers.

    A ``tracestate`` that is malformed or too long is dropped and does not affect the ``traceparent`` (W3C, 3.3).

    Args:
        headers: A mapping, or pairs of name and value, one per header line, like ASGI's ``scope["headers"]``. Names are
            case-insensitive.

    Returns:
        The remote parent, or ``None`` if there is no ``traceparent``, more than one, or an invalid one.
    """
    # Lists first: isinstance(…, Mapping) takes as long as scanning six headers.
    lines = headers if isinstance(headers, list) else headers.items() if isinstance(headers, Mapping) else headers
    parents: list[str | bytes] = []
    states: list[str | bytes] = []
    for name, value in lines:
        # Few headers have names of these lengths, so the others are skipped quickly.
        size = len(name)
        if size == _PARENT_LENGTH and _text(name).lower() == TRACEPARENT:
            parents.append(value)
        elif size == _STATE_LENGTH and _text(name).lower() == TRACESTATE:
            states.append(value)
    return parse(parents, states)


def parse(parents: Sequence[str | bytes], states: Sequence[str | bytes]) -> TraceContext | None:
    """Parse the values of all ``traceparent`` and all ``tracestate`` lines of a request; see :func:`extract`."""
    if len(parents) != 1:
        return None
    parent = _text(parents[0])
    match = _VERSION_00.match(parent) or _LATER_VERSION.match(parent)
    if match is None:
        return None
    trace_id, span_id, flags = match.groups()
    tracestate = _valid_tracestate(states) if states else ""
    return TraceContext(int(trace_id, 16), int(span_id, 16), int(flags, 16), tracestate)


def _valid_tracestate(values: Sequence[str | bytes]) -> str:
    """Join the lines of a ``tracestate`` header into one value; ``""`` if they are invalid.

    Of members with the same key, the first is kept, which W3C allows (3.5).
    """
    if sum(map(len, values)) > MAX_TRACESTATE_LENGTH:
        return ""
    lines = map(_text, values)
    members = [member for line in lines for part in line.split(",") if (member := part.strip(" \t"))]
    if len(members) > MAX_TRACESTATE_MEMBERS:
        return ""
    by_key: dict[str, str] = {}
    for member in members:
        match = _TRACESTATE_MEMBER.match(member)
        if match is None:
            return ""
        by_key.setdefault(match[1], member)
    return ",".join(by_key.values())


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
