"""langchain.py: however a model is called, its requests have their own call's span as parent."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import mlflow
import pytest

from tests.support.client import (
    GATEWAY,
    OTHER,
    Wire,
    each_stack,
    isolated,  # noqa: F401
    named_by,
    redirects,
    value_of,
)

pytest.importorskip("langchain_core")

from langchain_core.runnables import RunnableLambda, RunnableParallel

from agent_gateway_client.active_span import model_call
from agent_gateway_client.langchain import GatewayCallbackHandler
from tests.support.langchain import (
    DEADLINE_S,
    AsyncWire,
    each_autolog,  # noqa: F401
    http_model,
    messages,
    open_handler,  # noqa: F401
    own_parents,
    parents,
    with_autolog,
)


async def collect(parts: Any) -> list[Any]:
    return [part async for part in parts] if hasattr(parts, "__aiter__") else list(parts)


Call = Callable[[Any, Any], Awaitable[Any] | Any]

CALLS: dict[str, tuple[list[str], Call]] = {
    "invoke": (["a"], lambda model, config: model.invoke("a", config)),
    "ainvoke": (["a"], lambda model, config: model.ainvoke("a", config)),
    "stream": (["abc"], lambda model, config: list(model.stream("abc", config))),
    "astream": (["abc"], lambda model, config: collect(model.astream("abc", config))),
    "astream_events": (["abc"], lambda model, config: collect(model.astream_events("abc", config, version="v2"))),
    "batch": (["a", "b", "c"], lambda model, config: model.batch(["a", "b", "c"], config)),
    "abatch": (["a", "b", "c"], lambda model, config: model.abatch(["a", "b", "c"], config)),
    "generate": (["a", "b", "c"], lambda model, config: model.generate(messages("a", "b", "c"), **config)),
    "agenerate": (["a", "b", "c"], lambda model, config: model.agenerate(messages("a", "b", "c"), **config)),
    "chain.invoke": (["a"], lambda model, config: chain(model).invoke("a", config)),
    "chain.ainvoke": (["a"], lambda model, config: chain(model).ainvoke("a", config)),
    "chain.stream": (["a"], lambda model, config: list(chain(model).stream("a", config))),
    "chain.astream": (["a"], lambda model, config: collect(chain(model).astream("a", config))),
    "chain.batch": (["a", "b", "c"], lambda model, config: chain(model).batch(["a", "b", "c"], config)),
    "chain.abatch": (["a", "b", "c"], lambda model, config: chain(model).abatch(["a", "b", "c"], config)),
    "parallel": (["a", "b", "c"], lambda model, config: parallel(model).invoke("", config)),
    "parallel, async": (["a", "b", "c"], lambda model, config: parallel(model).ainvoke("", config)),
    "retries": (["a"], lambda model, config: model.with_retry().invoke("a", config)),
    "fallbacks": (["a"], lambda model, config: broken().with_fallbacks([model]).invoke("a", config)),
}

each_call = pytest.mark.parametrize("call", CALLS)

each_base_call = pytest.mark.parametrize("call", ["invoke", "ainvoke", "stream", "astream", "generate", "agenerate"])
"""The basic calls of a model, to which all others are reduced."""


def chain(model: Any) -> Any:
    return RunnableLambda(str) | model | RunnableLambda(lambda message: message.text)


def parallel(model: Any) -> Any:
    return RunnableParallel({word: RunnableLambda(lambda _, word=word: word) | model for word in "abc"})


def broken() -> Any:
    return RunnableLambda(lambda _: 1 / 0)


@each_call
async def test_every_request_names_its_own_call(call: str, autolog: str, handler: GatewayCallbackHandler):
    """Each request has autolog's span of its own call, or the active span if autolog makes none."""
    wire = Wire()
    words, run = CALLS[call]
    with mlflow.start_span("agent") as span:
        await value_of(run(http_model(wire), {"callbacks": [handler]}))
    assert parents(wire) == own_parents(words, named_by(span), autolog)


@with_autolog
@each_base_call
async def test_a_handler_on_the_model_is_as_good(call: str, autolog: str, handler: GatewayCallbackHandler):
    """The handler may be passed to the model instead of the run."""
    wire = Wire()
    words, run = CALLS[call]
    with mlflow.start_span("agent") as span:
        await value_of(run(http_model(wire, callbacks=[handler]), {}))
    assert parents(wire) == own_parents(words, named_by(span), autolog)


@each_base_call
async def test_without_an_outer_span(call: str, autolog: str, handler: GatewayCallbackHandler):
    """Without an active span, the requests have autolog's spans; without autolog they have no header."""
    wire = Wire()
    words, run = CALLS[call]
    await value_of(run(http_model(wire), {"callbacks": [handler]}))
    if autolog == "off":
        assert wire.sent() == [[]] * len(words)
    else:
        assert parents(wire) == own_parents(words, "", autolog)


@each_base_call
async def test_runs_without_a_handler_send_nothing(call: str, autolog: str, handler: GatewayCallbackHandler):
    """A handler that is not passed to the run changes nothing."""
    wire = Wire()
    words, run = CALLS[call]
    with mlflow.start_span("agent"):
        await value_of(run(http_model(wire), {}))
    assert wire.sent() == [[]] * len(words)


@each_base_call
async def test_runs_without_a_handler_are_not_followed(
    call: str, autolog: str, handler: GatewayCallbackHandler, monkeypatch: pytest.MonkeyPatch
):
    """For such a run nothing is read or made, and no span is active in its model's code."""
    monkeypatch.setattr("agent_gateway_client._langchain_runs._methods.LangChainCall", pytest.fail)
    seen: list[Any] = []
    words, run = CALLS[call]
    with mlflow.start_span("agent"):
        await value_of(run(http_model(Wire(lambda request: seen.append(model_call.get()))), {}))
    assert seen == [None] * len(words)


@each_base_call
async def test_other_hosts_get_nothing(call: str, autolog: str, handler: GatewayCallbackHandler):
    """A model that calls another host sends it no trace context, whatever its run's handlers."""
    wire = Wire()
    words, run = CALLS[call]
    with mlflow.start_span("agent"):
        await value_of(run(http_model(wire, base_url=OTHER), {"callbacks": [handler]}))
    assert wire.sent() == [[]] * len(words)


@with_autolog
@each_stack
@pytest.mark.parametrize("call", ["invoke", "ainvoke", "stream", "astream"])
async def test_a_redirect_to_another_host_loses_the_header(
    stack: Any, call: str, autolog: str, handler: GatewayCallbackHandler
):
    """The hop to the gateway and the next one, within the gateway, have the header; the hop to another host has not."""
    word = CALLS[call][0][0]
    hops = [f"{GATEWAY}/{word}", f"{GATEWAY}/again/{word}", f"{OTHER}/{word}"]
    wire = Wire(redirects({hops[0]: hops[1], hops[1]: hops[2]}))
    clients = {
        "client": wire.client(stack, follow_redirects=True),
        "async_client": wire.client(stack, "AsyncClient", follow_redirects=True),
    }
    with mlflow.start_span("agent") as span:
        await value_of(CALLS[call][1](http_model(wire, **clients), {"callbacks": [handler]}))
    assert wire.urls == hops
    parent = own_parents([word], named_by(span), autolog)[word]
    assert wire.sent() == [parent, parent, []]


async def test_fifty_calls_at_once(autolog: str, handler: GatewayCallbackHandler):
    """Of fifty concurrent calls, each has its own span."""
    all_there = asyncio.Event()

    async def meet() -> None:
        if len(wire.requests) == 50:
            all_there.set()
        await all_there.wait()

    wire = AsyncWire(meet)
    words = [f"word{number}" for number in range(50)]
    model = http_model(wire)
    with mlflow.start_span("agent") as span:
        await asyncio.gather(*(model.ainvoke(word, {"callbacks": [handler]}) for word in words))
    assert parents(wire) == own_parents(words, named_by(span), autolog)


def test_fifty_threads_at_once(autolog: str, handler: GatewayCallbackHandler):
    """Of fifty concurrent calls in threads, each has its own span."""
    all_there = threading.Barrier(50, timeout=DEADLINE_S)

    def meet(request: Any) -> None:
        all_there.wait()

    wire = Wire(meet)
    words = [f"word{number}" for number in range(50)]
    with mlflow.start_span("agent") as span:
        http_model(wire).batch(words, {"callbacks": [handler], "max_concurrency": 50})
    assert parents(wire) == own_parents(words, named_by(span), autolog)
