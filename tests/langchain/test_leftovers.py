"""langchain.py leaves nothing behind: however a model call ends, later requests have the outer span again.

This also holds if MLflow's tracer leaves the call's own span active.
"""

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import mlflow
import pytest

from tests.support.client import Wire, isolated, named_by  # noqa: F401

pytest.importorskip("langchain_core")

from langchain_core.language_models import BaseChatModel

from agent_gateway_client.active_span import model_call
from agent_gateway_client.langchain import GatewayCallbackHandler
from tests.support.langchain import (
    STACK,
    AsyncWire,
    each_autolog,  # noqa: F401
    http_model,
    messages,
    open_handler,  # noqa: F401
    plain_parent,
)


def fails_with(error: Any) -> Callable[[Any], Any]:
    """Return a wire's answer to model calls: a status, or an exception. Other requests succeed."""

    def answer(request: Any) -> Any:
        if request.url.path.rpartition("/")[2].startswith("plain"):
            return None
        if isinstance(error, int):
            return error
        raise error("on purpose")

    return answer


def assert_outer(wire: Wire, span: Any) -> None:
    """Assert that only the outer span is active, and that a plain request has it as parent."""
    assert model_call.get() is None
    assert plain_parent(wire) == named_by(span)


SYNC: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda model, config: model.invoke("a", config),
    "stream": lambda model, config: list(model.stream("a", config)),
    "batch": lambda model, config: model.batch(["a", "b"], config),
    "generate": lambda model, config: model.generate(messages("a", "b"), **config),
}

ERROR, TIME_OUT, CTRL_C = (500, STACK.HTTPStatusError), (STACK.ReadTimeout,) * 2, (KeyboardInterrupt,) * 2
"""What the wire does, and what the call then raises."""


@pytest.mark.parametrize("call", SYNC)
def test_after_an_error(call: str, autolog: str, handler: GatewayCallbackHandler):
    """After an error, a timeout and an interruption, the outer span is the parent."""
    for given, raised in (ERROR, TIME_OUT, CTRL_C):
        wire = Wire(fails_with(given))
        with mlflow.start_span("agent") as span:
            with pytest.raises(raised):
                SYNC[call](http_model(wire), {"callbacks": [handler]})
            assert_outer(wire, span)


async def read(parts: Any) -> None:
    async for _ in parts:
        pass


async def read_v3(model: Any, config: Any) -> None:
    with warnings.catch_warnings():
        # LangChain warns that it is beta.
        warnings.simplefilter("ignore")
        stream = await model.astream_events("a", config, version="v3")
    await stream


ASYNC: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
    "ainvoke": lambda model, config: model.ainvoke("a", config),
    "astream": lambda model, config: read(model.astream("a", config)),
    "astream_events": lambda model, config: read(model.astream_events("a", config, version="v2")),
    "abatch": lambda model, config: model.abatch(["a", "b"], config),
    "agenerate": lambda model, config: model.agenerate(messages("a", "b"), **config),
}
if hasattr(BaseChatModel, "_aiter_v2_events"):
    ASYNC["astream_events v3"] = read_v3

each_async_call = pytest.mark.parametrize("call", ASYNC)


async def cancelled_and_after(call: Awaitable[Any], after: Callable[[], Any], ready: Awaitable[Any]) -> Any:
    """Make a call in a task, cancel the task when it is ready, and return the parent of the task's later request."""

    async def agent() -> Any:
        with pytest.raises(asyncio.CancelledError):
            await call
        return after()

    task = asyncio.create_task(agent())
    # A task that is cancelled before it starts never runs.
    await asyncio.sleep(0)
    await ready
    task.cancel()
    return await task


@each_async_call
async def test_after_an_error_in_async_code(call: str, autolog: str, handler: GatewayCallbackHandler):
    """Like above, in the task that made the call; an interruption would end the event loop."""
    for given, raised in (ERROR, TIME_OUT):
        wire = Wire(fails_with(given))
        with mlflow.start_span("agent") as span:
            with pytest.raises(raised):
                await ASYNC[call](http_model(wire), {"callbacks": [handler]})
            assert_outer(wire, span)


@each_async_call
async def test_after_a_cancellation(call: str, autolog: str, handler: GatewayCallbackHandler):
    """A task that is cancelled while it waits for the gateway, and continues, has the outer span as parent."""
    sent, never = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        sent.set()
        await never.wait()

    wire = AsyncWire(hang)
    with mlflow.start_span("agent") as span:
        running = ASYNC[call](http_model(wire), {"callbacks": [handler]})
        await cancelled_and_after(running, lambda: assert_outer(wire, span), sent.wait())
    assert wire.sent()[0], "the call was cancelled before it sent its request"


@each_async_call
async def test_after_a_cancellation_at_any_moment(call: str, autolog: str, handler: GatewayCallbackHandler):
    """Like above, for a task that is cancelled before its request is sent, in any step of the event loop."""

    async def take(steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(0)

    # Kept to the end, as LangChain leaves a task behind that waits for it.
    never = asyncio.Event()
    for steps in range(12):
        wire = AsyncWire(never.wait)
        with mlflow.start_span("agent") as span:
            running = ASYNC[call](http_model(wire), {"callbacks": [handler]})
            await cancelled_and_after(running, partial(assert_outer, wire, span), take(steps))
