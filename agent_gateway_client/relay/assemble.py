"""Assembles the spans of one trace into gateway calls, each below the caller's span.

A gateway's part of a trace is everything below a *root*: a span whose parent is in another process. The call's mirror
has the root's id, and its parent is the root's parent, which is the caller's span. The model calls below the root are
its attempts. If several are nested (two instrumentations at once, a workflow around them), the innermost count. All ids
are the gateway's or derived from them, so relays that see the same spans write the same mirrors.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agent_gateway_client.relay.dialects import ENGINE, OWN, ROOT, dialect_of, is_own
from agent_gateway_client.relay.facts import Facts, attempt_of, engine_run_of
from agent_gateway_client.relay.spans import IncomingSpan
from agent_gateway_client.server.call import CLIENT_DISCONNECT, GatewayCall
from agent_gateway_client.w3c import TraceContext

_MAX_DEPTH = 100
_SAMPLED = 1


@dataclass(slots=True)
class Part:
    """The part of one gateway or model server in a trace.

    Attributes:
        top: The uppermost known span.
        rooted: Whether ``top`` is certainly the root, not a span whose parent has yet to arrive.
        members: All its spans.
        attempts: The innermost model calls among them.
        engines: The model servers' spans below them, each with the id of its parent. Each is a separate part.
    """

    top: IncomingSpan
    rooted: bool
    members: list[IncomingSpan] = field(default_factory=list)
    attempts: list[IncomingSpan] = field(default_factory=list)
    engines: list[tuple[IncomingSpan, int]] = field(default_factory=list)

    @property
    def signature(self) -> tuple[int, ...]:
        """What the part's mirrors depend on. If it has not changed, neither have they."""
        engines = (engine.span_id for engine, _ in self.engines)
        return (int(self.rooted), *sorted(span.span_id for span in self.attempts), *sorted(engines))


class TraceView:
    """The spans of a trace, divided into the parts of gateways and model servers.

    Args:
        spans: The known spans, by id.
    """

    def __init__(self, spans: Mapping[int, IncomingSpan]) -> None:
        self.spans = spans
        self.part_of: dict[int, Part] = {}
        tops: dict[int, Part] = {}
        for span in spans.values():
            top = _top(span, spans)
            part = tops.setdefault(top.span_id, Part(top, rooted=_is_root(top)))
            part.members.append(span)
            self.part_of[span.span_id] = part
        self.parts = list(tops.values())
        self._beside: dict[int, list[Part]] = defaultdict(list)
        for part in self.parts:
            self._beside[part.top.parent_id].append(part)
        self._find_attempts()
        for span in spans.values():
            if ENGINE.claims(span):
                self._place_engine(span)

    def beside(self, part: Part) -> list[Part]:
        """Return the parts below the same span of the caller, including this one."""
        return self._beside[part.top.parent_id]

    def above(self, span: IncomingSpan) -> Iterator[IncomingSpan]:
        """Iterate over the ancestors of a span in its part, the nearest first."""
        return _above(span, self.spans)

    def mirrored(self, span: IncomingSpan) -> int | None:
        """Return the id of the mirror of a span or of its nearest mirrored ancestor; ``None`` if there is none."""
        part = self.part_of[span.span_id]
        if not part.attempts:
            return None
        attempts = {attempt.span_id for attempt in part.attempts}
        for one in (span, *self.above(span)):
            if one.span_id in attempts:
                return attempt_id(one, part)
        return part.top.span_id if part.top.parent_id else None

    def _find_attempts(self) -> None:
        models = [span for span in self.spans.values() if dialect_of(span) is not None]
        outer = {above.span_id for model in models for above in self.above(model)}
        # By their ends, because a fallback may begin with the request; see Dialect.begins_early.
        for model in sorted(models, key=lambda span: (span.end_ns, span.start_ns, span.span_id)):
            if model.span_id not in outer:
                self.part_of[model.span_id].attempts.append(model)

    def _attempts_during(self, engine: IncomingSpan) -> list[tuple[IncomingSpan, Part]]:
        """Return the attempts that may have caused a model server's span whose parent is the caller's span.

        It is, if the gateway forwards the caller's headers, as LiteLLM Proxy can be configured to.
        """
        return [
            (attempt, part)
            for part in self._beside.get(engine.parent_id, [])
            for attempt in part.attempts
            if attempt.start_ns <= engine.start_ns <= attempt.end_ns
        ]

    def _place_engine(self, engine: IncomingSpan) -> None:
        """Place a model server's span below the attempt that caused it, or in a separate part."""
        asking = self.spans.get(engine.parent_id)
        during = self._attempts_during(engine)
        if len(during) == 1:
            attempt, part = during[0]
            part.engines.append((engine, attempt_id(attempt, part)))
        elif asking is None or asking is engine:
            self.part_of[engine.span_id].engines.append((engine, engine.parent_id))
        elif (parent_id := self.mirrored(asking)) is not None:
            self.part_of[asking.span_id].engines.append((engine, parent_id))


def _is_root(span: IncomingSpan) -> bool:
    return not span.parent_id or span.parent_is_remote


def _top(span: IncomingSpan, spans: Mapping[int, IncomingSpan]) -> IncomingSpan:
    """Return the uppermost known span of the same part."""
    for _ in range(_MAX_DEPTH):
        parent = None if _is_root(span) or ENGINE.claims(span) else spans.get(span.parent_id)
        if parent is None:
            break
        span = parent
    return span


def _above(span: IncomingSpan, spans: Mapping[int, IncomingSpan]) -> Iterator[IncomingSpan]:
    for _ in range(_MAX_DEPTH):
        parent = None if _is_root(span) else spans.get(span.parent_id)
        if parent is None:
            return
        yield parent
        span = parent


def attempt_id(span: IncomingSpan, part: Part) -> int:
    """Return the id of an attempt's mirror.

    The call's mirror has the root's id. If the root is an attempt too, that attempt's id is derived from it.
    """
    if span is not part.top or part.top.local_parent:
        return span.span_id
    digest = hashlib.sha256(f"attempt {span.trace_id:032x} {span.span_id:016x}".encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1


def call_of(part: Part, view: TraceView) -> GatewayCall | None:
    """Return the call of a part; ``None`` if it has no attempt or no caller, or its place is unknown."""
    if ENGINE.claims(part.top):
        return _engine_only(part) if part.engines else None
    if not part.attempts or not part.top.parent_id:
        return None
    if not part.rooted and part.top.local_parent:
        return _attempts_only(part)
    return _whole_call(part, view)


def _whole_call(part: Part, view: TraceView) -> GatewayCall:
    top = part.top
    call = GatewayCall(
        TraceContext(top.trace_id, _visible_parent(part, view), _SAMPLED),
        start_time_ns=top.start_ns,
        end_time_ns=max(top.start_ns, top.end_ns),
        span_id=top.span_id,
    )
    _add_attempts(call, part)
    _add_root(call, part, view)
    _add_stream(call)
    _add_engines(call, part)
    return call


def _add_attempts(call: GatewayCall, part: Part) -> None:
    for span in part.attempts:
        dialect = dialect_of(span)
        if dialect is None:
            continue
        facts = Facts(span, dialect)
        attempt = attempt_of(span, facts, attempt_id(span, part))
        before = call.attempts[-1] if call.attempts else None
        if dialect.begins_early and before and before.error_type and before.end_time_ns:
            attempt.start_time_ns = max(attempt.start_time_ns, min(before.end_time_ns, span.end_ns))
        call.add(attempt)
        call.endpoint = call.endpoint or facts.name("endpoint")
        call.request_type = call.request_type or facts.name("request_type")
        call.operation = facts.operation if call.operation == "other" else call.operation
        if (streaming := facts.flag("streaming")) is not None:
            call.streaming = streaming
        if (seconds := facts.seconds("first_chunk_seconds")) is not None:
            call.time_to_first_chunk_ns = span.start_ns + int(seconds * 1e9) - call.start_time_ns


def _add_root(call: GatewayCall, part: Part, view: TraceView) -> None:
    top = part.top
    root = Facts(top, ROOT)
    call.http_status = root.http_status
    call.error_type = root.error_type
    call.cache_hit = root.flag("cache_hit")
    if is_own(top):
        own = Facts(top, OWN)
        call.endpoint = own.name("endpoint")
        call.endpoint_id = own.name("endpoint_id")
        call.request_type = own.name("request_type")
        call.operation = own.operation
        call.streaming = own.flag("streaming")
        seconds = own.seconds("first_chunk_seconds")
        call.time_to_first_chunk_ns = None if seconds is None else int(seconds * 1e9)
        host, port = own.name("server_host"), own.count("server_port")
        call.server_address = f"{host}:{port}" if host and port else host
        call.linked = TraceContext(*top.link, _SAMPLED) if top.link else None
    for other in view.beside(part):
        # LiteLLM's callback creates its root next to FastAPI's, and only FastAPI's span reports a disconnect.
        if _is_around(other, part) and Facts(other.top, ROOT).error_type == CLIENT_DISCONNECT:
            call.error_type = CLIENT_DISCONNECT
    if call.error_type == CLIENT_DISCONNECT and any(_estimates_failures(span) for span in part.attempts):
        call.attempts[-1].usage = call.attempts[-1].cost = None


def _estimates_failures(span: IncomingSpan) -> bool:
    dialect = dialect_of(span)
    return dialect is not None and dialect.estimates_failures


def _add_stream(call: GatewayCall) -> None:
    """Add what follows from the first chunk: the response was a stream, and fails with its last attempt.

    A gateway's root may not report it, because the status had been sent by then.
    """
    if call.time_to_first_chunk_ns is not None and call.streaming is None:
        call.streaming = True
    if call.streaming and call.error_type is None and call.attempts:
        call.error_type = call.attempts[-1].error_type


def _is_around(other: Part, part: Part) -> bool:
    outer, inner = other.top, part.top
    return (
        outer is not inner and not other.attempts and outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns
    )


def _add_engines(call: GatewayCall, part: Part) -> None:
    models = {call.span_id: None, **{attempt.span_id: attempt.model for attempt in call.attempts}}
    for span, parent_id in part.engines:
        if parent_id in models:
            run = engine_run_of(span, Facts(span, ENGINE), parent_id)
            run.model = run.model or models[parent_id]
            call.engine_runs.append(run)


def _visible_parent(part: Part, view: TraceView) -> int:
    """Return the caller's span. If the caller is another gateway, that is its nearest mirrored span."""
    asking = view.spans.get(part.top.parent_id)
    mirror_id = None if asking is None or asking is part.top else view.mirrored(asking)
    return part.top.parent_id if mirror_id is None else mirror_id


def _attempts_only(part: Part) -> GatewayCall | None:
    """Return the attempt of a call whose root went to another relay, if its parent is certain."""
    top = part.top
    dialect = dialect_of(top)
    if dialect is None or not dialect.parent_is_root or part.attempts != [top]:
        return None
    call = _parts_below(top.trace_id, top.parent_id, top.start_ns, top.end_ns)
    call.add(attempt_of(top, Facts(top, dialect), top.span_id))
    _add_engines(call, part)
    return call


def _engine_only(part: Part) -> GatewayCall:
    """Return a model server's run whose parent is mirrored by another process."""
    engine, parent_id = part.engines[0]
    call = _parts_below(engine.trace_id, parent_id, engine.start_ns, engine.end_ns)
    call.engine_runs.append(engine_run_of(engine, Facts(engine, ENGINE), parent_id))
    return call


def _parts_below(trace_id: int, span_id: int, start_ns: int, end_ns: int) -> GatewayCall:
    return GatewayCall(
        TraceContext(trace_id, span_id, _SAMPLED),
        start_time_ns=start_ns,
        end_time_ns=max(start_ns, end_ns),
        span_id=span_id,
        mirrored_elsewhere=True,
    )
