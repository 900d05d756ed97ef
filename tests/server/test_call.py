"""call.py: the facts of a call, and the two ways it ends."""

import asyncio
import typing
from types import NoneType, UnionType

import pytest

from agent_gateway_client.server import call as module
from agent_gateway_client.server import current_gateway_call
from agent_gateway_client.server.call import (
    CLIENT_DISCONNECT,
    MAX_ATTEMPTS,
    Attempt,
    Cost,
    EngineRun,
    GatewayCall,
    Operation,
    TokenUsage,
    current_call,
    error_type,
    new_span_id,
)
from agent_gateway_client.w3c import TraceContext
from tests.support.server import PARENT

FACTS = (GatewayCall, Attempt, EngineRun, TokenUsage, Cost)

TEXTS = {
    (GatewayCall, "endpoint"),
    (GatewayCall, "endpoint_id"),
    (GatewayCall, "request_type"),
    (GatewayCall, "server_address"),
    (GatewayCall, "error_type"),
    (GatewayCall, "workspace"),
    (GatewayCall, "user"),
    (Attempt, "provider"),
    (Attempt, "model"),
    (Attempt, "error_type"),
    (Attempt, "finish_reason"),
    (Attempt, "response_model"),
    (EngineRun, "model"),
    (EngineRun, "error_type"),
}
"""The fields that can hold text. For a new one, ask: can a prompt, an answer or an error message get in?"""


def alternatives(annotation: object) -> set[object]:
    """Return the possible types of a field."""
    if typing.get_origin(annotation) in (UnionType, typing.Union):
        return {kind for part in typing.get_args(annotation) for kind in alternatives(part)}
    return {annotation}


def test_only_names_can_be_text():
    """Apart from a closed list of short names, a field holds a number, a flag, or another of these classes."""
    plain = {int, float, bool, NoneType, TraceContext, Operation, *FACTS, list[Attempt], list[EngineRun]}
    for facts in FACTS:
        for name, annotation in typing.get_type_hints(facts).items():
            kinds = alternatives(annotation) - plain
            assert kinds == ({str} if (facts, name) in TEXTS else set()), (facts, name)


@pytest.mark.parametrize(
    "fact", [GatewayCall(PARENT), Attempt(), TokenUsage(), Cost(0, 0, 0)], ids=lambda f: type(f).__name__
)
def test_no_other_field_can_be_added(fact: object):
    """An object has the declared fields and no others."""
    with pytest.raises((AttributeError, TypeError)):
        fact.prompt = "canary"  # type: ignore[attr-defined]
    assert not hasattr(fact, "__dict__")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (None, None),
        ("503", "503"),
        (CLIENT_DISCONNECT, "client_disconnect"),
        (ValueError("the prompt was: canary"), "ValueError"),
        (asyncio.CancelledError("canary"), "CancelledError"),
        (type("canary\n", (Exception,), {})(), "canary\n"),
    ],
)
def test_a_failure_is_named_and_not_quoted(error: BaseException | str | None, name: str | None):
    """Only an exception's class is kept."""
    assert error_type(error) == name


def test_a_call_ends_once():
    """The first end counts: later ones change neither its time nor its reason."""
    call = GatewayCall(PARENT)
    call.end(CLIENT_DISCONNECT, 5)
    call.end("500", 7)
    call.end()
    assert (call.end_time_ns, call.error_type) == (5, CLIENT_DISCONNECT)


def test_a_call_ends_now_by_default():
    """Without a given time a call ends when end() is called, after its start."""
    call = GatewayCall(PARENT)
    call.end()
    assert call.end_time_ns is not None
    assert call.end_time_ns >= call.start_time_ns
    assert call.error_type is None


def test_an_attempt_is_timed_and_succeeds():
    """Leaving attempt() ends it; until then it has no end."""
    call = GatewayCall(PARENT)
    with call.attempt("openai", "gpt-4o-mini") as attempt:
        assert attempt.end_time_ns is None
    assert call.attempts == [attempt]
    assert attempt.end_time_ns is not None
    assert attempt.end_time_ns >= attempt.start_time_ns >= call.start_time_ns
    assert (attempt.provider, attempt.model, attempt.error_type) == ("openai", "gpt-4o-mini", None)


@pytest.mark.parametrize("error", [ValueError("canary"), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_exception_fails_the_attempt_and_goes_on(error: BaseException):
    """attempt() records an exception by its class and raises it unchanged, cancellation included."""
    call = GatewayCall(PARENT)
    with pytest.raises(type(error)) as raised, call.attempt():
        raise error
    assert raised.value is error
    assert [attempt.error_type for attempt in call.attempts] == [type(error).__name__]


def test_an_attempt_that_was_ended_inside_keeps_its_reason():
    """A gateway that knows more, like an HTTP status, may end the attempt itself."""
    call = GatewayCall(PARENT)
    with call.attempt() as attempt:
        attempt.end("429")
    assert attempt.error_type == "429"


def test_attempts_are_bounded(logged: pytest.LogCaptureFixture):
    """A gateway that retries forever creates a bounded number of spans, warns once, and runs on."""
    call = GatewayCall(PARENT)
    for number in range(MAX_ATTEMPTS + 10):
        with call.attempt(model=str(number)):
            pass
    assert [attempt.model for attempt in call.attempts] == [str(number) for number in range(MAX_ATTEMPTS)]
    assert len(logged.messages) == 1


def test_ids_are_valid_and_differ():
    """A new span id has 64 bits and is not zero, and each call and attempt gets its own."""
    ids = [new_span_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(0 < span_id < 2**64 for span_id in ids)
    assert len({GatewayCall(PARENT).span_id, GatewayCall(PARENT).span_id, Attempt().span_id, Attempt().span_id}) == 4


async def test_the_current_call_is_the_tasks_own():
    """current_gateway_call() returns each task's own call, and None if the caller is not tracing."""
    assert current_gateway_call() is None

    async def serve() -> bool:
        call = GatewayCall(PARENT)
        token = current_call.set(call)
        await asyncio.sleep(0)
        mine = current_gateway_call() is call
        current_call.reset(token)
        return mine and current_gateway_call() is None

    assert all(await asyncio.gather(*(serve() for _ in range(20))))


def test_the_public_name_is_the_same_function():
    """agent_gateway_client.server exports call.py's own function."""
    assert current_gateway_call is module.current_gateway_call
