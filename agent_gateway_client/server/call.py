"""All that may be known of a call through a gateway. No field can hold a payload.

Fields are numbers, flags, and short names that come from the gateway's configuration or from closed sets; what a
caller, a model or an error says has no place here. How the fields are named in a trace is decided in ``mirror.py``.
"""

import math
import time
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.w3c import TraceContext

MAX_ATTEMPTS = 64
"""Attempts kept per call; a gateway that tries more often than this loses the later ones."""

MAX_TEXT_LENGTH = 200
"""Characters kept of any text of a call."""

MAX_COUNT = 2**63 - 1
"""Of tokens and of nanoseconds: what a 64-bit column of a store takes."""

CLIENT_DISCONNECT = "client_disconnect"
"""The ``error_type`` of a call whose client hung up before the response was complete."""

Operation = Literal["chat", "text_completion", "embeddings", "generate_content", "other"]
"""What was asked of the model, in the words of OpenTelemetry's ``gen_ai.operation.name``, and ``other``."""

NOBODY = TraceContext(0, 0, 0)
"""The parent of a call whose caller is not tracing."""

new_span_id = RandomIdGenerator().generate_span_id


@dataclass(slots=True, frozen=True)
class TokenUsage:
    """Tokens as the provider reported them; ``None`` for what it did not report.

    ``input_tokens`` contains the cached ones and ``output_tokens`` the reasoning, as in MLflow and OpenTelemetry. What
    is not a count of tokens is left out with a warning: a gateway's request must not fail because of it.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    reasoning_output_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not is_count(value):
                _warn_of_value(f"TokenUsage.{name}", value, "the number of tokens as an int")
                object.__setattr__(self, name, None)


@dataclass(slots=True, frozen=True)
class Cost:
    """What the tokens cost, in USD; ``None`` for what is not known.

    What is not an amount is left out with a warning: a gateway's request must not fail because of it.
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
    """One try at one provider. As a context manager it ends with the block, and an exception makes it a failed one.

    Attributes:
        provider: The provider's name in the gateway's configuration, like ``openai``.
        model: The model that the provider is asked for, in the provider's words, like ``gpt-4o-mini``.
        response_model: The model that has answered, as the provider says, like ``gpt-4o-mini-2024-07-18``.
        start_time_ns: Nanoseconds since the epoch.
        end_time_ns: Nanoseconds since the epoch; ``None`` while the attempt is under way. One that is never ended
            lasts as long as its call.
        error_type: ``None`` where it succeeded, else an exception's class or an HTTP status; never a message.
        span_id: 64 bits; the gateway's own where it has a span for the attempt.
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
        """Note that the attempt is over, and what it failed of if it did. Only the first time counts."""
        if self.end_time_ns is None:
            self.end_time_ns = _time_or_now(end_time_ns)
            self.error_type = self.error_type or error_type(error)

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.end(error)


@dataclass(slots=True)
class EngineRun:
    """What a model server, such as vLLM, did for an attempt.

    Its tokens are the attempt's, and are not counted again.

    Attributes:
        parent_span_id: The span it hangs below: an attempt's, or the call's.
        model: The model's name there.
        queue_seconds: From the request's arrival to its first turn.
        prefill_seconds: Reading the prompt.
        decode_seconds: Making the answer.
        first_token_seconds: From the request's arrival to the first token.
        start_time_ns: Nanoseconds since the epoch.
        end_time_ns: Nanoseconds since the epoch.
        error_type: ``None`` where it succeeded, else an exception's class; never a message.
        span_id: 64 bits; the model server's own.
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
    """One request to the gateway whose caller wants to see it in its trace.

    Attributes:
        parent: The caller's span.
        endpoint: The endpoint's name in the gateway's configuration.
        endpoint_id: The endpoint's id there, where it has one.
        operation: What was asked of the model.
        request_type: The gateway's own name for the route, from a closed set.
        server_address: ``host:port`` at which the gateway was reached.
        streaming: Whether the response was a stream; ``None`` where that is not known.
        http_status: The response's status.
        time_to_first_chunk_ns: From the start to the first byte of a streamed body, in nanoseconds.
        cache_hit: Whether the gateway answered from its cache.
        start_time_ns: Nanoseconds since the epoch.
        end_time_ns: Nanoseconds since the epoch; ``None`` while the call is under way.
        error_type: ``None`` where it succeeded, else an exception's class, an HTTP status or ``client_disconnect``.
        linked: The gateway's own span for this call, in the gateway's own trace.
        attempts: The tries at providers, in order.
        span_id: 64 bits; the gateway's own where it has a span for the call.
        workspace: The MLflow workspace that the gateway served the call in; ``None`` where there are no workspaces. It
            says where the caller's trace is looked for and is not in the mirror.
        engine_runs: What model servers did for the attempts, as far as it is known.
        mirrored_elsewhere: Whether another process writes the call's own mirror, and only what is below it is known
            here. ``span_id`` is that mirror's.
        caller_is_known: Whether the gateway has let the caller in. A gateway sets it once it has checked the caller's
            key; what it refuses after that is mirrored too. It is not in the mirror.
        user: The gateway's name of the caller, where it says which traces the caller may write to. It is not in the
            mirror.
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
        """Tell whether the caller was turned away, as far as is known, before the gateway had let it in.

        Who may not call may not write into a trace either. An application may answer 404, 405, 413, 415 or 422 before
        it looks at a key, so any 4xx counts, unless a provider was asked or the application says that it knows the
        caller.
        """
        return 400 <= (self.http_status or 0) < 500 and not self.attempts and not self.caller_is_known

    def add(self, attempt: Attempt) -> None:
        """Add an attempt; beyond ``MAX_ATTEMPTS`` it is left out, and that is said once."""
        if len(self.attempts) < MAX_ATTEMPTS:
            self.attempts.append(attempt)
        else:
            warn_once(
                "call.attempts",
                "A gateway call has more than %d provider attempts; the rest are not mirrored.",
                MAX_ATTEMPTS,
            )

    def attempt(self, provider: str | None = None, model: str | None = None) -> Attempt:
        """Begin an attempt: ``with call.attempt(…)``, or without ``with`` for one that outlives the block it is in."""
        attempt = Attempt(provider=provider, model=model)
        self.add(attempt)
        _latest_attempt.set(attempt)
        return attempt

    def attempt_under_way(self) -> Attempt | None:
        """Return the attempt that the running code makes: the latest that was begun here, else anywhere.

        Attempts that run side by side, in tasks of their own, are told apart.
        """
        begun = [attempt for attempt in self.attempts if attempt.end_time_ns is None]
        latest = _latest_attempt.get()
        return latest if any(attempt is latest for attempt in begun) else begun[-1] if begun else None

    def end(self, error: BaseException | str | None = None, end_time_ns: int | None = None) -> None:
        """Note that the call is over, and what it failed of if it did. Only the first time counts.

        Attempts that are still under way end with it, of the same failure.
        """
        if self.end_time_ns is None:
            self.end_time_ns = _time_or_now(end_time_ns)
            self.error_type = self.error_type or error_type(error)
            for attempt in self.attempts:
                attempt.end(self.error_type, self.end_time_ns)

    def compact(self) -> None:
        """Let go of what a mirror does not need, cut texts, and correct times, so that a call that waits is small.

        Raises:
            TypeError: A field holds a value of another type than it is declared with.
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


# A user's name that was cut would be another user's.
_CALL_TEXTS = tuple(
    one.name for one in fields(GatewayCall) if one.type in (str | None, Operation) and one.name != "user"
)
_ENGINE_TEXTS = tuple(one.name for one in fields(EngineRun) if one.type == str | None)
_ATTEMPT_TEXTS = tuple(one.name for one in fields(Attempt) if one.type == str | None)
_NANOSECONDS = "nanoseconds since the epoch as an int"


def is_count(value: object) -> bool:
    """Tell whether a value is an integer that a store can keep and that is not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def status_code(status: object) -> int | None:
    """Return an HTTP status as a number: of an int, an ``HTTPStatus``, or a text that begins with it (WSGI's)."""
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
        "%s was set to a value that cannot be stored (a %s) and is left out of the mirror; set %s. Where it was set is "
        "logged at level DEBUG.",
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
            raise TypeError(f"{type(facts).__name__}.{name} is a {type(text).__name__} and not a string")
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
    """Return the call that the running code serves; ``None`` where its caller is not tracing."""
    return current_call.get()


def gateway_attempt(provider: str | None = None, model: str | None = None) -> Attempt:
    """Begin an attempt of the call that the running code serves; see :meth:`GatewayCall.attempt`.

    Where the caller is not tracing, the attempt takes everything and goes nowhere.
    """
    call = current_call.get()
    return Attempt(provider=provider, model=model) if call is None else call.attempt(provider, model)


def error_type(error: BaseException | str | None) -> str | None:
    """Return the short name of a failure: an exception's class, or the name as it is."""
    if isinstance(error, GeneratorExit):
        # A server closes the generator of a response whose client has gone.
        return CLIENT_DISCONNECT
    return error if error is None or isinstance(error, str) else type(error).__name__
