# ruff: noqa: F811 - fixtures that are imported are arguments too.
"""instrument_litellm(): retries and fallbacks of the HTTP client, of LiteLLM's functions and of its router."""

import asyncio
from collections.abc import Callable
from typing import Any

import mlflow
import pytest

from agent_gateway_client.demo.provider import Provider
from tests.support.client import (
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
)
from tests.support.litellm import (
    MESSAGES,
    MINI,
    arguments_for,
    autolog,  # noqa: F401
    each_way,
    ended,
    in_one_loop,
    litellm,
    make_call,
    parent_id,
    provider,  # noqa: F401
    sent,
    shared_provider,  # noqa: F401
    usage,
)

pytestmark = in_one_loop

FAILING = MINI + "-fail-500"

in_each_thread = pytest.mark.parametrize("thread", ["async", "sync", "sync in the loop's thread"])
"""How a router is called; a notebook's cells run in the loop's thread, where LiteLLM uses another thread."""


async def call_in(thread: str, call: Callable[..., Any], acall: Callable[..., Any], **arguments: Any) -> None:
    if thread == "async":
        await acall(**arguments)
    elif thread == "sync":
        await asyncio.to_thread(call, **arguments)
    else:
        call(**arguments)


def router(provider: Provider) -> Any:
    """Return a router with a failing model, which is tried twice, and a fallback."""
    deployments = {"first": [FAILING] * 2, "second": [MINI]}
    return litellm.Router(
        [
            {"model_name": name, "litellm_params": {**arguments_for(provider, model), "max_retries": 0}}
            for name, models in deployments.items()
            for model in models
        ],
        fallbacks=[{"first": ["second"]}],
        num_retries=1,
        retry_after=0,
    )


@each_way
async def test_the_clients_own_retries_are_of_one_call(is_async: bool, provider: Provider, autolog: None):
    """Every attempt of one call has that call's only span as parent."""
    with mlflow.start_span("agent"), pytest.raises(litellm.InternalServerError):
        await make_call("completion", provider, is_async=is_async, model=FAILING, max_retries=1)
    assert sent(provider) == [[named_by_otel(*ended())]] * 2


@in_each_thread
async def test_the_routers_attempts_are_calls_of_their_own(thread: str, provider: Provider, autolog: None):
    """The router's retries and fallbacks each have their own span; one of them has the tokens."""
    chosen = router(provider)
    with mlflow.start_span("agent") as agent:
        await call_in(thread, chosen.completion, chosen.acompletion, model="first", messages=MESSAGES)
    own = ended()
    assert [span.status.status_code.name for span in own] == ["ERROR", "ERROR", "OK"]
    assert sent(provider) == [[named_by_otel(span)] for span in own]
    assert {parent_id(span) for span in own} == {agent.span_id}
    assert [usage(span) for span in own] == [None, None, (3, 5)]


@in_each_thread
async def test_without_autolog_the_routers_attempts_name_the_active_span(thread: str, provider: Provider):
    """The router's retries and fallbacks all have the span that is active where it is called."""
    chosen = router(provider)
    with mlflow.start_span("agent") as agent:
        await call_in(thread, chosen.completion, chosen.acompletion, model="first", messages=MESSAGES)
    assert sent(provider) == [[named_by(agent)]] * 3


@in_each_thread
async def test_fallbacks_of_one_call_are_calls_of_their_own(thread: str, provider: Provider, autolog: None):
    """With completion(fallbacks=...) each model has its own span, although it is one call for LiteLLM."""
    arguments = {**arguments_for(provider, FAILING), "messages": MESSAGES, "fallbacks": [MINI], "max_retries": 0}
    with mlflow.start_span("agent") as agent:
        await call_in(thread, litellm.completion, litellm.acompletion, **arguments)
    own = ended()
    assert [span.status.status_code.name for span in own] == ["ERROR", "OK"]
    assert sent(provider) == [[named_by_otel(span)] for span in own]
    assert {parent_id(span) for span in own} == {agent.span_id}
    assert [usage(span) for span in own] == [None, (3, 5)]
