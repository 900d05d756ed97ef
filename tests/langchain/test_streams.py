"""langchain.py and streams: a call is current while the model's code runs, not while its reader's does."""

import asyncio
import gc
import warnings
from typing import Any

import mlflow
import pytest

from tests.support.client import Wire, isolated, named_by  # noqa: F401

pytest.importorskip("langchain_core")

from langchain_core.language_models import BaseChatModel
from langchain_core.rate_limiters import InMemoryRateLimiter

from agent_gateway_client.active_span import model_call
from agent_gateway_client.langchain import GatewayCallbackHandler
from tests.support.langchain import (
    STACK,
    HttpModel,
    each_autolog,  # noqa: F401
    http_model,
    model_spans,
    open_handler,  # noqa: F401
    parents,
    plain_parent,
)

needs_v3 = pytest.mark.skipif(
    not hasattr(BaseChatModel, "_iter_v2_events"), reason="this langchain-core has no stream_events(version='v3')"
)


def assert_outer(wire: Wire, span: Any) -> None:
    """Assert that the reader's requests have the outer span, and that it is active in MLflow too."""
    assert model_call.get() is None
    assert plain_parent(wire) == named_by(span)
    assert mlflow.get_current_active_span() is span


@pytest.mark.parametrize("end", ["close", "forget", "read on"])
def test_an_abandoned_stream(end: str, autolog: str, handler: GatewayCallbackHandler):
    """While a stream waits for its reader, and after it is abandoned, the reader's requests do not have its span."""
    wire = Wire()
    with mlflow.start_span("agent") as span:
        stream = http_model(wire).stream("abc", {"callbacks": [handler]})
        assert next(stream).text == "a"
        assert_outer(wire, span)
        if end == "close":
            stream.close()
        elif end == "read on":
            assert "".join(chunk.text for chunk in stream) == "bc"
        del stream
        if end == "forget":
            gc.collect()
        assert_outer(wire, span)


@pytest.mark.parametrize("end", ["close", "forget", "read on"])
async def test_an_abandoned_async_stream(end: str, autolog: str, handler: GatewayCallbackHandler):
    """Like above, for a stream read with ``async for``."""
    wire = Wire()
    with mlflow.start_span("agent") as span:
        stream = http_model(wire).astream("abc", {"callbacks": [handler]})
        assert (await anext(stream)).text == "a"
        assert_outer(wire, span)
        if end == "close":
            await stream.aclose()
        elif end == "read on":
            assert "".join([chunk.text async for chunk in stream]) == "bc"
        del stream
        if end == "forget":
            gc.collect()
        # The event loop closes an abandoned stream.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert_outer(wire, span)


def test_a_call_while_a_stream_is_read(autolog: str, handler: GatewayCallbackHandler):
    """Two concurrent calls of one model each have their own span."""
    wire = Wire()
    model = http_model(wire)
    with mlflow.start_span("agent") as span:
        for chunk in model.stream("abc", {"callbacks": [handler]}):
            if chunk.text == "b":
                model.invoke("inner", {"callbacks": [handler]})
    assert_own(wire, ["abc", "inner"], named_by(span), autolog)


async def test_async_streams_read_in_turns(autolog: str, handler: GatewayCallbackHandler):
    """Two streams that one task reads in turn each have their own span."""
    wire = Wire()
    model = http_model(wire)
    with mlflow.start_span("agent") as span:
        streams = [model.astream(word, {"callbacks": [handler]}) for word in ("abc", "def")]
        for _ in range(3):
            for stream in streams:
                await anext(stream)
        for stream in streams:
            async for _ in stream:
                pass
    assert_own(wire, ["abc", "def"], named_by(span), autolog)


def assert_own(wire: Wire, words: list[str], outer: str, autolog: str) -> None:
    spans = model_spans()
    assert parents(wire) == {word: [outer if autolog == "off" else spans[word]] for word in words}


class Stop(Exception):
    pass


def test_an_exception_thrown_into_a_stream(autolog: str, handler: GatewayCallbackHandler):
    """An exception that a reader throws into a stream reaches the model, as without a handler."""
    wire = Wire()
    with mlflow.start_span("agent") as span:
        stream: Any = http_model(wire).stream("abc", {"callbacks": [handler]})
        next(stream)
        with pytest.raises(Stop):
            stream.throw(Stop())
        assert_outer(wire, span)


async def test_an_exception_thrown_into_an_async_stream(autolog: str, handler: GatewayCallbackHandler):
    """Like above, for a stream read with ``async for``."""
    wire = Wire()
    with mlflow.start_span("agent") as span:
        stream: Any = http_model(wire).astream("abc", {"callbacks": [handler]})
        await anext(stream)
        with pytest.raises(Stop):
            await stream.athrow(Stop())
        assert_outer(wire, span)


async def test_a_stream_cancelled_before_its_turn(autolog: str, handler: GatewayCallbackHandler):
    """A stream cancelled while it waits for a rate limiter, which no handler is notified of, leaves nothing."""
    wire = Wire()
    model = http_model(wire, rate_limiter=InMemoryRateLimiter(requests_per_second=1e-6, check_every_n_seconds=1e-3))
    waiting = asyncio.Event()

    async def agent() -> str:
        waiting.set()
        with pytest.raises(asyncio.CancelledError):
            await anext(model.astream("abc", {"callbacks": [handler]}))
        return plain_parent(wire)

    with mlflow.start_span("agent") as span:
        task = asyncio.create_task(agent())
        await waiting.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        assert await task == named_by(span)
    assert len(wire.requests) == 1


@needs_v3
def test_a_v3_stream(autolog: str, handler: GatewayCallbackHandler):
    """While a version 3 stream waits for its reader, the reader's requests do not have its span."""
    wire = Wire()
    with mlflow.start_span("agent") as span:
        with warnings.catch_warnings():
            # LangChain warns that it is beta.
            warnings.simplefilter("ignore")
            stream = http_model(wire).stream_events("abc", {"callbacks": [handler]}, version="v3")
        next(iter(stream.text))
        assert_outer(wire, span)
        assert stream.output.text == "abc"
        assert_outer(wire, span)
    word, *_ = parents(wire).values()
    assert word == [named_by(span) if autolog == "off" else model_spans()["abc"]]


async def test_what_the_model_starts_and_does_not_wait_for(autolog: str, handler: GatewayCallbackHandler):
    """A task that a model's code starts and that outlives the call does not have the ended call's span as parent."""
    wire = Wire()
    over = asyncio.Event()
    tasks = []

    class Careless(HttpModel):
        async def _aask(self, messages: list[Any]) -> str:
            tasks.append(asyncio.create_task(later()))
            return await super()._aask(messages)

    async def later() -> str:
        await over.wait()
        assert model_call.get() is not None
        return plain_parent(wire)

    model = Careless(client=wire.client(STACK), async_client=wire.client(STACK, "AsyncClient"))
    with mlflow.start_span("agent") as span:
        await model.ainvoke("a", {"callbacks": [handler]})
        over.set()
        # Inline, the call's span is active in MLflow where the task is started.
        assert await tasks[0] == (model_spans()["a"] if autolog == "inline" else named_by(span))
