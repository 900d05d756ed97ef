# ruff: noqa: F811 - fixtures that are imported are arguments too.
"""instrument_litellm(): however a call ends, its span ends with it, and the next request has the right parent."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import httpx
import mlflow
import openai
import pytest

from agent_gateway_client import trace_headers, wrap_httpx
from agent_gateway_client.demo.provider import Provider
from tests.support.client import (
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
)
from tests.support.e2e import wait_for
from tests.support.litellm import (
    MESSAGES,
    MINI,
    STREAM,
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
)

pytestmark = in_one_loop


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def assert_nothing_is_left(provider: Provider) -> None:
    with mlflow.start_span("next") as span:
        assert trace_headers(provider.url) == {"traceparent": named_by(span)}


@each_way
async def test_a_call_that_fails(is_async: bool, provider: Provider, autolog: None):
    """A failing call's request has autolog's span, which gets the status ERROR."""
    with mlflow.start_span("agent") as agent, pytest.raises(litellm.InternalServerError):
        await make_call("completion", provider, is_async=is_async, model=MINI + "-fail-500")
    (own,) = ended()
    assert sent(provider) == [[named_by_otel(own)]]
    assert (own.status.status_code.name, parent_id(own)) == ("ERROR", agent.span_id)
    assert_nothing_is_left(provider)


@each_way
async def test_a_call_that_takes_too_long(is_async: bool, provider: Provider, autolog: None):
    """A call that times out has the status ERROR."""
    with mlflow.start_span("agent"):
        with pytest.raises(litellm.Timeout):
            await make_call("completion", provider, is_async=is_async, model=MINI + "-slow-60000", timeout=0.3)
        (own,) = ended()
        assert_nothing_is_left(provider)
    assert sent(provider) == [[named_by_otel(own)]]
    assert own.status.status_code.name == "ERROR"


async def test_a_call_that_is_cancelled(provider: Provider, autolog: None):
    """A cancelled call has the status ERROR."""
    with mlflow.start_span("agent"):
        call = asyncio.create_task(make_call("completion", provider, is_async=True, model=MINI + "-slow-60000"))
        await asyncio.to_thread(wait_for, "the request", lambda: provider.requests)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        (own,) = ended()
        assert_nothing_is_left(provider)
    assert sent(provider) == [[named_by_otel(own)]]
    assert own.status.status_code.name == "ERROR"


@each_way
async def test_a_stream_that_breaks(is_async: bool, provider: Provider, autolog: None):
    """A stream that breaks off ends its span, with the status ERROR, before the caller's own ends."""
    failure = None
    with mlflow.start_span("agent"):
        try:
            await make_call("completion, streamed", provider, is_async=is_async, model=MINI + "-broken")
        except openai.APIError as error:
            failure = error
        (own,) = ended()
    assert sent(provider) == [[named_by_otel(own)]]
    # Some versions of LiteLLM treat the end of the connection as the end of the stream.
    assert own.status.status_code.name == ("ERROR" if failure else "OK")
    assert failure or is_async


@each_way
@pytest.mark.parametrize("parts", [0, 1])
async def test_a_stream_that_nobody_reads_to_its_end(
    is_async: bool, parts: int, provider: Provider, autolog: None, no_garbage_collection: None
):
    """Dropping a stream ends its span: MLflow keeps a trace back while one of its spans is open."""
    with mlflow.start_span("agent"):
        arguments: dict[str, Any] = {**arguments_for(provider, MINI + "-long"), "messages": MESSAGES, **STREAM}
        if is_async:
            stream = await litellm.acompletion(**arguments)
            for _ in range(parts):
                await anext(stream)
        else:
            stream = litellm.completion(**arguments)
            for _ in range(parts):
                next(stream)
        assert ended() == []
        del stream
        # LiteLLM's thread keeps a part of a sync stream for a moment longer.
        (own,) = await asyncio.to_thread(wait_for, "the end of the span", ended)
    assert_nothing_is_left(provider)
    assert sent(provider) == [[named_by_otel(own)]]


async def test_a_stream_that_nobody_begins_to_read(provider: Provider, autolog: None, no_garbage_collection: None):
    """LiteLLM sends a sync text completion when its first part is read; without that there is no call."""
    arguments = arguments_for(provider, "text-completion-openai/gpt-4o-mini")
    with mlflow.start_span("agent") as agent:
        stream = litellm.text_completion(prompt="one two", stream=True, **arguments)
        assert stream
        del stream
        assert trace_headers(provider.url) == {"traceparent": named_by(agent)}
    assert all(named_by_otel(own) in headers for own, headers in zip(ended(), sent(provider), strict=True))


async def test_what_the_reader_of_a_stream_sends_is_its_own(provider: Provider, autolog: None):
    """Between the parts of a stream the active span is the parent: the reader's requests are not part of the call."""
    client = wrap_httpx(httpx.Client(base_url=provider.url, trust_env=False))
    with mlflow.start_span("agent") as agent:
        stream = litellm.completion(messages=MESSAGES, stream=True, **arguments_for(provider))
        client.get("/v1/models")
        for _ in stream:
            client.get("/v1/models")
        client.get("/v1/models")
    call, *others = sent(provider)
    assert call == [named_by_otel(*ended())]
    assert len(others) > 2
    assert others == [[named_by(agent)]] * len(others)


@each_way
async def test_an_answer_out_of_the_cache(
    is_async: bool, provider: Provider, autolog: None, monkeypatch: pytest.MonkeyPatch
):
    """A call that LiteLLM answers itself sends nothing, has autolog's span, and leaves nothing behind."""
    monkeypatch.setattr(litellm, "cache", litellm.Cache())
    for _ in range(2):
        with mlflow.start_span("agent"):
            await make_call("completion", provider, is_async=is_async)
            assert_nothing_is_left(provider)
        await asyncio.to_thread(wait_for, "the answer to be kept", lambda: litellm.cache.cache.cache_dict)
    # LiteLLM logs such an answer later.
    first, _ = await asyncio.to_thread(wait_for, "both spans", lambda: len(ended()) == 2 and ended())
    assert sent(provider) == [[named_by_otel(first)]]
