"""The facts of a call through a gateway. No field can hold a payload.

Fields are numbers, flags, and short names from the gateway's configuration or from closed sets, never text from a
caller, a model or an error. ``mirror.py`` decides how a trace names the fields.
"""

import math
import time
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.w3c import TraceContext

MAX_ATTEMPTS = 64
"""Attempts kept per call; later ones are dropped."""

MAX_TEXT_LENGTH = 200
"""Characters kept of each text of a call."""

MAX_COUNT = 2**63 - 1
"""Largest number of tokens or nanoseconds: the limit of a store's 64-bit column."""

CLIENT_DISCONNECT = "client_disconnect"
"""The ``error_type`` of a call whose client disconnected before the response was complete."""

Operation = Literal["chat", "text_completion", "embeddings", "generate_content", "other"]
"""What the model was called for: values of OpenTelemetry's ``gen_ai.operation.name``, and ``other``."""

NO_PARENT = TraceContext(0, 0, 0)
"""The parent of a call whose caller is not tracing."""

new_span_id = RandomIdGenerator().generate_span_id


@dataclass(slots=True, frozen=True)
class TokenUsage:
    """Tokens as the provider reported them; ``None`` for counts that it did not report.

    ``input_tokens`` includes cached tokens and ``output_tokens`` includes reasoning tokens, as in MLflow and
    OpenTelemetry. ``cache_creation_input_tokens_above_1hr`` (MLflow's name) is the part of
    ``cache_creation_input_tokens`` that was written for one hour, at a higher price. An invalid value
    becomes ``None`` with a warning, so that it cannot fail a request.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    reasoning_output_tokens: int | None = None
    cache_creation_input_tokens_above_1hr: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not is_count(value):
                _warn_of_value(f"TokenUsage.{name}", value, "the number of tokens as an int")
                object.__setattr__(self, name, None)


@dataclass(slots=True, frozen=True)
class Cost:
    """What the tokens cost, in USD; ``None`` for unknown amounts.

    An invalid value becomes ``None`` with a warning, so that it cannot fail a request.
    """

    input_cost: float | None = None
    output_cost: float | None = None
    total_cost: float | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not _is_amount(value):
                _warn_of_value(f"Cost.{name}", value, "an amount in USD as a finite, non-negative float")
                object.__setattr__(self, name, None)


@dataclass(slots=True)
class Attempt:
    """One request to one provider. As a context manager it ends with the block, and fails if the block raises.

    Attributes:
        provider: The provider's name in the gateway's configuration, like ``openai``.
        model: The requested model, by the provider's name, like ``gpt-4o-mini``.
        response_model: The model that answered, as the provider reports it, like ``gpt-4o-mini-2024-07-18``.
        start_time_ns: Nanoseconds since the epoch.
        end_time_ns: Nanoseconds since the epoch; ``None`` while the attempt is open. An attempt that is never ended
            ends with its call.
        error_type: ``None`` on success, else an exception's class or an HTTP status; never a message.
        span_id: 64 bits; that of the gateway's own span for the attempt, if it has one.
    """

    provider: str | None = None
    model: str | None = None
    start_time_ns: int = field(default_factory=time.time_ns)
    end_time_ns: int | None = None
    error_type: str | None = None
    usage: TokenUsage | None = None
    cost: Cost | None = None
    finish_reason: str | None = None
    span_id: int = field(default_factory=new_span_id)
    response_model: str | None = None

    def end(self, error: BaseException | str | None = None, end_time_ns: int | None = None) -> None:
        """End the attempt, with an error if it failed. Later calls have no effect."""
        if self.end_time_ns is None:
            self.end_time_ns = _time_or_now(end_time_ns)
            self.error_type = self.error_type or error_type(error)

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.end(error)


@dataclass(slots=True)
class EngineRun:
    """The run of a model server, such as vLLM, for an attempt.

    It has no token counts: they are the attempt's.

    Attributes:
        parent_span_id: The span of the attempt or of the call.
        model: The model's name on the server.
        queue_seconds: From the request's arrival until it is scheduled.
        prefill_seconds: Time to process the prompt.
        decode_seconds: Time to generate the answer.
        first_token_seconds: From the request's arrival to the first token.
        start_time_ns: Nanoseconds since the epoch.
        end_time_ns: Nanoseconds since the epoch.
        error_type: ``None`` on success, else an exception's class; never a message.
        span_id: 64 bits; that of the model server's span.
    """

    parent_span_id: int
    model: str | None = None
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    first_token_seconds: float | None = None
    start_time_ns: int = field(default_factory=time.time_ns)
    end_time_ns: int = field(default_factory=time.time_ns)
    error_type: str | None = None
    span_id: int = field(default_factory=new_span_id)


@dataclass(slots=True)
class GatewayCall:
    """One request to the gateway from a caller that is tracing.

    Attributes:
        parent: The caller's span.
        endpoint: The endpoint's name in the gateway's configuration.
        endpoint_id: The endpoint's id there, where it has one.
        operation: What the model was called for.
        request_type: The gateway's own name for the route, from a closed set.
        server_address: ``host:port`` at which the gateway was reached.
        streaming: Whether the response was a stream; ``None`` if that is not known.
        http_status: The response's status.
        time_to_first_chunk_ns: From the start to the first byte of a streamed body, in nanoseconds.
        cache_hit: Whether the gateway answered from its cache.
        start_time_ns: Nanoseconds since the epoch.
        end_time_ns: Nanoseconds since the epoch; ``None`` while the call is open.
        error_type: ``None`` on success, else an exception's class, an HTTP status or ``client_disconnect``.
        linked: The gateway's span for this call, in the gateway's own trace.
        attempts: The requests to providers, in order.
        span_id: 64 bits; that of the gateway's own span for the call, if it has one.
        workspace: The MLflow workspace in which the gateway served the call; ``None`` without workspaces. The caller's
            trace is looked up there. Not part of the mirror.
        engine_runs: The known runs of model servers for the attempts.
        mirrored_elsewhere: Whether another process writes the gateway span, whose id is ``span_id``; only the spans
            below it are then written here.
        caller_is_known: Whether the caller is authenticated. A gateway sets it after it has checked the caller's key;
            requests that it rejects later are mirrored too. Not part of the mirror.
        user: The caller's user name, if it decides which traces the caller may write to. Not part of the mirror.
    """

    parent: TraceContext
    endpoint: str | None = None
    endpoint_id: str | None = None
    operation: Operation = "other"
    request_type: str | None = None
    server_address: str | None = None
    streaming: bool | None = None
    http_status: int | None = None
    time_to_first_chunk_ns: int | None = None
    cache_hit: bool | None = None
    start_time_ns: int = field(default_factory=time.time_ns)
    end_time_ns: int | None = None
    error_type: str | None = None
    linked: TraceContext | None = None
    attempts: list[Attempt] = field(default_factory=list)
    span_id: int = field(default_factory=new_span_id)
    workspace: str | None = None
    engine_runs: list[EngineRun] = field(default_factory=list)
    mirrored_elsewhere: bool = False
    caller_is_known: bool = False
    user: str | None = None

    def is_refused(self) -> bool:
        """Return whether the gateway probably rejected the request before it authenticated the caller.

        A caller that may not call must not write into a trace either. An application may answer 404, 405, 413, 415 or
        422 before it checks a key, so any 4xx counts, unless there was an attempt or ``caller_is_known`` is set.
        """
        return 400 <= (self.http_status or 0) < 500 and not self.attempts and not self.caller_is_known

    def add(self, attempt: Attempt) -> None:
        """Add an attempt. Attempts beyond ``MAX_ATTEMPTS`` are dropped with one warning."""
        if len(self.attempts) < MAX_ATTEMPTS:
            self.attempts.append(attempt)
        else:
            warn_once(
                "call.attempts",
                "A gateway call has more than %d provider attempts; the rest are not mirrored.",
                MAX_ATTEMPTS,
            )

    def attempt(self, provider: str | None = None, model: str | None = None) -> Attempt:
        """Start an attempt: ``with call.attempt(…)``, or without ``with`` if it outlives the current block."""
        attempt = Attempt(provider=provider, model=model)
        self.add(attempt)
        _latest_attempt.set(attempt)
        return attempt

    def attempt_under_way(self) -> Attempt | None:
        """Return the open attempt of the running code: the last one started in this context, else in any.

        Concurrent attempts in separate tasks are kept apart.
        """
        begun = [attempt for attempt in self.attempts if attempt.end_time_ns is None]
        latest = _latest_attempt.get()
        return latest if any(attempt is latest for attempt in begun) else begun[-1] if begun else None

    def end(self, error: BaseException | str | None = None, end_time_ns: int | None = None) -> None:
        """End the call, with an error if it failed. Later calls have no effect.

        Open attempts end with the call and get the same error.
        """
        if self.end_time_ns is None:
            self.end_time_ns = _time_or_now(end_time_ns)
            self.error_type = self.error_type or error_type(error)
            for attempt in self.attempts:
                attempt.end(self.error_type, self.end_time_ns)

    def compact(self) -> None:
        """Drop data that a mirror does not need, truncate texts and correct times, to keep queued calls small.

        Raises:
            TypeError: A field has a value of the wrong type.
        """
        self.parent = TraceContext(*self.parent[:3])
        _cut_texts(self, _CALL_TEXTS)
        _correct_times(self)
        for attempt in self.attempts:
            _cut_texts(attempt, _ATTEMPT_TEXTS)
            _correct_times(attempt)
        for run in self.engine_runs:
            _cut_texts(run, _ENGINE_TEXTS)
            _correct_times(run)


# A truncated user name could be the name of another user.
_CALL_TEXTS = tuple(
    one.name for one in fields(GatewayCall) if one.type in (str | None, Operation) and one.name != "user"
)
_ENGINE_TEXTS = tuple(one.name for one in fields(EngineRun) if one.type == str | None)
_ATTEMPT_TEXTS = tuple(one.name for one in fields(Attempt) if one.type == str | None)
_NANOSECONDS = "nanoseconds since the epoch as an int"


def is_count(value: object) -> bool:
    """Return whether a value is a non-negative integer that a store can keep."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


@lru_cache
def address(host: str | None, port: int | str | None) -> str:
    """Return a ``server_address``. Cached, so that queued calls share one string."""
    return f"{host}:{port}"


def status_code(status: object) -> int | None:
    """Return an HTTP status as a number, from an int, an ``HTTPStatus``, or a WSGI status line."""
    if type(status) is int:
        return status
    if isinstance(status, bytes):
        status = status.decode("latin-1")
    if isinstance(status, str):
        status = status[:3]
        return int(status) if status.isascii() and status.isdecimal() else None
    return int(status) if isinstance(status, int) and not isinstance(status, bool) else None


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _time_or_now(time_ns: Any) -> int:
    if time_ns and not is_count(time_ns):
        _warn_of_value("end_time_ns", time_ns, _NANOSECONDS)
        return time.time_ns()
    return time_ns or time.time_ns()


def _warn_of_value(name: str, value: object, expected: str) -> None:
    logger.debug("%s was set to a %s; set %s", name, type(value).__name__, expected, stack_info=True)
    warn_once(
        f"call.{name}",
        "%s was set to a value that cannot be stored (a %s), so the mirror omits it; set %s. The stack is logged at "
        "level DEBUG.",
        name,
        type(value).__name__,
        expected,
    )


def _cut_texts(facts: GatewayCall | Attempt | EngineRun, names: tuple[str, ...]) -> None:
    for name in names:
        text = getattr(facts, name)
        if text is None:
            continue
        if not isinstance(text, str):
            raise TypeError(f"{type(facts).__name__}.{name} is a {type(text).__name__}, not a string")
        if len(text) > MAX_TEXT_LENGTH:
            setattr(facts, name, text[:MAX_TEXT_LENGTH])


def _correct_times(facts: GatewayCall | Attempt | EngineRun) -> None:
    name = type(facts).__name__
    if facts.end_time_ns is not None and not is_count(facts.end_time_ns):
        _warn_of_value(f"{name}.end_time_ns", facts.end_time_ns, _NANOSECONDS)
        facts.end_time_ns = None
    if not is_count(facts.start_time_ns):
        _warn_of_value(f"{name}.start_time_ns", facts.start_time_ns, _NANOSECONDS)
        facts.start_time_ns = facts.end_time_ns or time.time_ns()


_latest_attempt: ContextVar[Attempt | None] = ContextVar("agent_gateway_client.attempt", default=None)
current_call: ContextVar[GatewayCall | None] = ContextVar("agent_gateway_client.call", default=None)


def current_gateway_call() -> GatewayCall | None:
    """Return the call that the running code serves; ``None`` if the caller is not tracing."""
    return current_call.get()


def gateway_attempt(provider: str | None = None, model: str | None = None) -> Attempt:
    """Start an attempt of the call that the running code serves; see :meth:`GatewayCall.attempt`.

    If the caller is not tracing, the attempt is never exported.
    """
    call = current_call.get()
    return Attempt(provider=provider, model=model) if call is None else call.attempt(provider, model)


def error_type(error: BaseException | str | None) -> str | None:
    """Return the short name of a failure: an exception's class, or the given name."""
    if isinstance(error, GeneratorExit):
        # A server closes the generator of a response when the client has disconnected.
        return CLIENT_DISCONNECT
    return error if error is None or isinstance(error, str) else type(error).__name__
