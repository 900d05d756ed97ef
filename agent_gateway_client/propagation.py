"""W3C Trace Context: the innermost active span to headers, and headers to the remote parent.

Source of the rules: https://www.w3.org/TR/trace-context-2/. Pure functions, but for :func:`current_trace_context`,
which reads the context of the running code.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import NamedTuple, Protocol

from opentelemetry import trace
from opentelemetry.trace import SpanContext

from agent_gateway_client._log import version_of, warn_once
from agent_gateway_client.gateways import Gateways

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

MAX_TRACESTATE_MEMBERS = 32
MAX_TRACESTATE_LENGTH = 8192
"""Characters. W3C asks for at least 512 to be relayed; what is longer than this is taken for an attack."""

_PARENT_LENGTH = len(TRACEPARENT)
_STATE_LENGTH = len(TRACESTATE)
_SAMPLED = 0x01
_FLAGS = [f"{flags:02x}" for flags in range(256)]

_VERSION_00 = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_LATER_VERSION = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z")
_TRACESTATE_KEY = r"[a-z0-9][a-z0-9_\-*/@]{0,255}"
_TRACESTATE_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_TRACESTATE_MEMBER = re.compile(rf"({_TRACESTATE_KEY})={_TRACESTATE_VALUE}\Z")


class TraceContext(NamedTuple):
    """A span as another process sees it.

    Attributes:
        trace_id: 128 bits, never 0.
        span_id: 64 bits, never 0. W3C calls it the parent id.
        flags: 8 bits; the lowest says that the trace is sampled.
        tracestate: The vendors' members, ready to be a header value, or ``""``.
    """

    trace_id: int
    span_id: int
    flags: int
    tracestate: str = ""

    @property
    def sampled(self) -> bool:
        """Whether the caller records this trace. Other flag bits (random) do not matter here."""
        return bool(self.flags & _SAMPLED)

    @property
    def traceparent(self) -> str:
        """The value of the ``traceparent`` header, version 00."""
        return _traceparent(self.trace_id, self.span_id, self.flags)

    def to_headers(self) -> dict[str, str]:
        """Return ``traceparent``, and ``tracestate`` where there is one, with lower-case names."""
        if self.tracestate:
            return {TRACEPARENT: self.traceparent, TRACESTATE: self.tracestate}
        return {TRACEPARENT: self.traceparent}


# A span often sends more than one request, and a request asks more than once.
@lru_cache(maxsize=64)
def _traceparent(trace_id: int, span_id: int, flags: int) -> str:
    # Formatting the numbers takes three times as long.
    return f"00-{trace_id.to_bytes(16, 'big').hex()}-{span_id.to_bytes(8, 'big').hex()}-{_FLAGS[flags]}"


class ModelCall(Protocol):
    """A framework's call of a model, which may know a better parent for its requests than the active span."""

    @property
    def gateways(self) -> Gateways:
        """Where the call's requests may carry trace context to, beside the gateways named elsewhere."""

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return the parent of a request that is sent now, given what it would be without this call. Never raises."""


model_call: ContextVar[ModelCall | None] = ContextVar("agent_gateway_client.model_call", default=None)
"""The call of a model whose own code is running now; set by a framework's adapter, and only for that long.
In a gateway, the call that it serves."""


def is_received(traceparent: str | None) -> bool:
    """Tell whether a gateway was sent this ``traceparent`` with the call it serves, and now sends it on as it is.

    It names the caller's span, which is not the innermost one by then.
    """
    return traceparent is not None and traceparent == getattr(model_call.get(), "received", None)


def current_trace_context() -> TraceContext | None:
    """Return the innermost active MLflow span's context, else OpenTelemetry's current span's, else ``None``.

    MLflow keeps its active span in a context of its own by default, which OpenTelemetry's functions do not see. A span
    that is not sampled is returned with its flags as they are. The span of :data:`model_call` goes first.
    """
    active = active_trace_context()
    call = model_call.get()
    return call.trace_context(active) if call else active


def active_trace_context() -> TraceContext | None:
    """Return what :func:`current_trace_context` does where there is no :data:`model_call`."""
    mlflows = as_trace_context(_active_mlflow_span_context())
    return mlflows or as_trace_context(trace.get_current_span().get_span_context())


_latest: tuple[SpanContext | None, TraceContext | None] = (None, None)
"""What :func:`as_trace_context` was given last, and what it returned. Replaced as a whole, so it needs no lock."""


def as_trace_context(context: SpanContext | None) -> TraceContext | None:
    """Return an OpenTelemetry span's context as a :class:`TraceContext`; ``None`` where it is not valid."""
    global _latest
    # A span keeps its context, which never changes; reading it takes as long as finding it.
    latest, found = _latest
    if context is latest:
        return found
    # MLflow's no-op span, which it hands out when it could not make one, has no context at all.
    if context is None or not context.is_valid:
        return None
    state = context.trace_state
    found = TraceContext(context.trace_id, context.span_id, context.trace_flags, state.to_header() if state else "")
    _latest = context, found
    return found


def _active_mlflow_span_context() -> SpanContext | None:
    """Return the context of MLflow's current span, valid or not; ``None`` where MLflow is not imported.

    The one place that touches MLflow's tracing internals on the client: its public ``get_current_active_span()`` does
    not show a span that is not sampled.
    """
    provider = sys.modules.get("mlflow.tracing.provider")
    if provider is None:
        return None
    try:
        # MLflow's own functions ask os.environ first whether it shares OpenTelemetry's context, which takes longer than
        # all else here. Where it does, this context has no span.
        return trace.get_current_span(provider.mlflow_runtime_context.get_current()).get_span_context()
    except Exception as error:  # whatever MLflow does, the user's call goes on
        warn_once(
            "mlflow.tracing.provider",
            "mlflow-tracing %s does not tell its active span the way this version of agent-gateway-client expects "
            "(%s); only OpenTelemetry's current span is propagated. Upgrade agent-gateway-client.",
            version_of("mlflow-tracing"),
            type(error).__name__,
        )
        return None


def extract(
    headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]], *, strict: bool = False
) -> TraceContext | None:
    """Read the remote parent out of request headers.

    Args:
        headers: A mapping, or pairs of name and value, one for each header line (ASGI's ``scope["headers"]`` as it is).
            Names are compared without regard to case.
        strict: Whether a malformed, duplicated or oversized ``tracestate`` makes the whole context invalid. W3C lets a
            participant drop just the ``tracestate`` then, or the duplicates, which is what is done otherwise.

    Returns:
        The remote parent, or ``None`` where there is no ``traceparent``, more than one, or an invalid one.
    """
    # A list first: asking whether something is a Mapping takes as long as looking at six headers.
    lines = headers if isinstance(headers, list) else headers.items() if isinstance(headers, Mapping) else headers
    parents: list[str | bytes] = []
    states: list[str | bytes] = []
    for name, value in lines:
        # Few headers have a name of these lengths, so the rest are not looked at.
        size = len(name)
        if size == _PARENT_LENGTH and _text(name).lower() == TRACEPARENT:
            parents.append(value)
        elif size == _STATE_LENGTH and _text(name).lower() == TRACESTATE:
            states.append(value)
    if len(parents) != 1:
        return None
    parent = _text(parents[0]).strip(" \t")
    match = (_VERSION_00 if parent.startswith("00") else _LATER_VERSION).match(parent)
    if match is None:
        return None
    trace_id, span_id = int(match[1], 16), int(match[2], 16)
    if not trace_id or not span_id:
        return None
    tracestate = _valid_tracestate(list(map(_text, states)), strict) if states else ""
    if tracestate is None:
        if strict:
            return None
        tracestate = ""
    return TraceContext(trace_id, span_id, int(match[3], 16), tracestate)


def _valid_tracestate(lines: list[str], strict: bool) -> str | None:
    """Join the lines of a ``tracestate`` header into one value, or return ``None`` where they are invalid.

    Of members with the same key the first is kept, which W3C allows (3.5), or with ``strict`` none.
    """
    if sum(map(len, lines)) > MAX_TRACESTATE_LENGTH:
        return None
    members = [member for line in lines for part in line.split(",") if (member := part.strip(" \t"))]
    if len(members) > MAX_TRACESTATE_MEMBERS:
        return None
    by_key: dict[str, str] = {}
    for member in members:
        match = _TRACESTATE_MEMBER.match(member)
        if match is None or (strict and match[1] in by_key):
            return None
        by_key.setdefault(match[1], member)
    return ",".join(by_key.values())


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
