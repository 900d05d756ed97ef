"""A span as the relay holds it: what is needed to assemble a call, and nothing that can hold a payload."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

SERVER = 2
"""OTLP's ``SPAN_KIND_SERVER``."""

ERROR = 2
"""OTLP's ``STATUS_CODE_ERROR``."""

MAX_TEXT = 200
"""Longest text value, in characters. A longer one is not a name and is left out."""

MAX_JSON = 600
"""Longest value that holds JSON, in characters (MLflow's token counts)."""

SERVICE_NAME = "service.name"
SERVED_MODEL = "gen_ai.response.model"
RESOURCE_KEYS = frozenset({SERVICE_NAME, SERVED_MODEL})
"""The resource attributes that are read."""

_HAS_IS_REMOTE = 0x100
_IS_REMOTE = 0x200

Value = str | int | float | bool


class Resource(NamedTuple):
    """The process that sent spans.

    Attributes:
        service: Its ``service.name``, if it is one that the dialects know.
        model: Its ``gen_ai.response.model``: the model that it serves, set by its operator. vLLM's spans name no model.
    """

    service: str = ""
    model: str = ""

    @classmethod
    def of(cls, attributes: Mapping[str, Value], names: Collection[str]) -> "Resource":
        """Build it from a resource's attributes.

        Args:
            attributes: The attributes in ``RESOURCE_KEYS``.
            names: Service names to keep.
        """
        service, model = attributes.get(SERVICE_NAME), attributes.get(SERVED_MODEL)
        return cls(
            service if isinstance(service, str) and service in names else "", model if isinstance(model, str) else ""
        )


NO_RESOURCE = Resource()


@dataclass(slots=True)
class IncomingSpan:
    """One decoded span.

    Attributes:
        trace_id: 128 bits, never 0.
        span_id: 64 bits, never 0.
        parent_id: 64 bits, or 0 for a trace's own root.
        name: Compared with known names, never written; empty if it is long.
        kind: OTLP's ``SpanKind``.
        flags: OTLP's; two of its bits say whether the parent is in another process.
        start_ns: Nanoseconds since the epoch.
        end_ns: Nanoseconds since the epoch.
        failed: Whether its status is ERROR. The status message is not read.
        attributes: The attributes that the dialects name; of an array, its first value.
        link: Trace id and span id of its first link. Link attributes are not read.
        resource: The process that sent it.
        scope: Name of the instrumentation scope, if the dialects know it.
        arrived: When it arrived, in seconds on the collection's clock.
    """

    trace_id: int
    span_id: int
    parent_id: int = 0
    name: str = ""
    kind: int = 0
    flags: int = 0
    start_ns: int = 0
    end_ns: int = 0
    failed: bool = False
    attributes: dict[str, Value] = field(default_factory=dict)
    link: tuple[int, int] | None = None
    resource: Resource = NO_RESOURCE
    scope: str = ""
    arrived: float = 0.0

    @property
    def parent_is_remote(self) -> bool:
        """Whether the parent is in another process: by its flags, or without them if this is a server span."""
        if not self.parent_id:
            return False
        if self.flags & _HAS_IS_REMOTE:
            return bool(self.flags & _IS_REMOTE)
        return self.kind == SERVER

    @property
    def local_parent(self) -> bool:
        """Whether its flags say that the parent is in the same process. Not all SDKs set them."""
        return bool(self.flags & _HAS_IS_REMOTE) and not self.flags & _IS_REMOTE


class MalformedBody(ValueError):
    """The body does not match its content type."""


@dataclass(slots=True)
class Batch:
    """The spans of one request.

    Attributes:
        spans: The decoded spans.
        rejected: Number of spans that were not decoded: their ids are invalid, or there are too many.
    """

    spans: list[IncomingSpan] = field(default_factory=list)
    rejected: int = 0
