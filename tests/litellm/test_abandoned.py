# ruff: noqa: F811 - fixtures that are imported are arguments too.
"""instrument_litellm(): an abandoned call still ends, and is not the parent of later requests."""

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine
from datetime import datetime
from typing import Any

import httpx
import litellm
import mlflow
import pytest
from litellm.integrations.mlflow import MlflowLogger
from litellm.litellm_core_utils.litellm_logging import Logging
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

from agent_gateway_client import instrument_litellm, trace_headers, wrap_httpx
from agent_gateway_client.active_span import model_call
from agent_gateway_client.demo.provider import Provider
from agent_gateway_client.litellm import _instrument
from tests.support.client import (
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
)
from tests.support.e2e import wait_for
from tests.support.litellm import (
    CLAUDE,
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
    undo_instrumentations,
)

pytestmark = in_one_loop


async def give_up(provider: Provider, model: str = MINI, **more: Any) -> None:
    """Start a call to a model that always fails, and cancel it while LiteLLM waits to retry."""
    arguments = {"messages": MESSAGES, "max_retries": 9, **arguments_for(provider, model + "-fail-503"), **more}
    before = len(provider.requests)
    me = asyncio.current_task()
    assert me is not None

    async def cancel() -> None:
        await asyncio.to_thread(wait_for, "the request", lambda: len(provider.requests) > before)
        await asyncio.sleep(0.2)
        me.cancel()

    canceller = asyncio.create_task(cancel())
    try:
        await litellm.acompletion(**arguments)
    except asyncio.CancelledError:
        getattr(me, "uncancel", int)()
    except litellm.ServiceUnavailableError:
        pass  # Some versions of LiteLLM do not retry themselves.
    finally:
        canceller.cancel()


async def test_calls_after_one_that_was_given_up(provider: Provider, autolog: None):
    """A call that is cancelled between two attempts ends with the status ERROR; the next calls are other traces."""
    await give_up(provider)
    assert model_call.get() is None or trace_headers(provider.url) == {}
    given_up = len(provider.requests)
    for _ in range(5):
        await make_call("completion", provider, is_async=True)
    first, *others = ended()
    assert first.status.status_code.name == "ERROR"
    assert [span.parent for span in others] == [None] * 5
    assert {*map(tuple, sent(provider)[:given_up])} == {(named_by_otel(first),)}
    assert sent(provider)[given_up:] == [[named_by_otel(span)] for span in others]


async def test_requests_of_others_after_a_call_that_was_given_up(provider: Provider, autolog: None):
    """Another client's request has the active span, and the abandoned call's span has ended before the caller's."""
    client = wrap_httpx(httpx.Client(base_url=provider.url, trust_env=False))
    with mlflow.start_span("agent") as agent:
        await give_up(provider)
        client.get("/v1/models")
        (own,) = ended()
    client.close()
    assert sent(provider)[-1] == [named_by(agent)]
    assert (own.status.status_code.name, parent_id(own)) == ("ERROR", agent.span_id)


async def test_a_call_that_nothing_follows(provider: Provider, autolog: None):
    """If no other request follows, the span of an abandoned call ends when LiteLLM's object is collected."""
    await give_up(provider)
    (own,) = await asyncio.to_thread(wait_for, "the end of the span", ended)
    assert own.status.status_code.name == "ERROR"


async def test_thousands_of_calls_that_were_given_up(provider: Provider, autolog: None):
    """Abandoned calls do not accumulate: later requests have their header as usual."""
    kept = []
    with mlflow.start_span("agent") as agent:
        for number in range(2000):
            kept.append(Logging("m", MESSAGES, False, "acompletion", datetime.now(), str(number), str(number)))
        assert trace_headers(provider.url) == {"traceparent": named_by(agent)}
        await make_call("completion", provider, is_async=True)
    (own,) = ended()
    assert sent(provider) == [[named_by_otel(own)]]
    assert parent_id(own) == agent.span_id


@each_way
@pytest.mark.parametrize("name", ["completion, streamed", "responses, streamed"])
async def test_the_reader_of_a_stream_from_elsewhere(name: str, is_async: bool, provider: Provider, autolog: None):
    """Requests of a stream's reader have the active span, wherever the stream comes from."""
    other = provider.url.replace("127.0.0.1", "localhost")
    with mlflow.start_span("agent") as agent:
        stream = await open_stream(name, is_async, provider, api_base=other + "/v1")
        seen = [trace_headers(provider.url)]
        async for _ in parts_of(stream):
            seen.append(trace_headers(provider.url))
    assert len(seen) > 2
    assert seen == [{"traceparent": named_by(agent)}] * len(seen)


async def open_stream(name: str, is_async: bool, provider: Provider, **more: Any) -> Any:
    is_chat = name.startswith("completion")
    given = {"messages": MESSAGES} if is_chat else {"input": "one two three"}
    function = getattr(litellm, "a" * is_async + ("completion" if is_chat else "responses"))
    stream = function(**{**arguments_for(provider), **given, "stream": True, **more})
    return await stream if is_async else stream


async def parts_of(stream: Any) -> AsyncIterator[Any]:
    if hasattr(stream, "__anext__"):
        async for part in stream:
            yield part
    else:
        for part in stream:
            yield part


class Cancelled:
    """A source of stream parts that is cancelled while it waits for one."""

    def __aiter__(self) -> "Cancelled":
        return self

    async def __anext__(self) -> Any:
        raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("name", "source"),
    [("completion, streamed", "completion_stream"), ("responses, streamed", "stream_iterator")],
)
async def test_a_stream_whose_reader_is_cancelled(name: str, source: str, provider: Provider, autolog: None):
    """A stream that is cancelled midway has the status ERROR, in either API."""
    stream = await open_stream(name, True, provider)
    await anext(stream)
    assert hasattr(stream, source)
    setattr(stream, source, Cancelled())
    with pytest.raises(asyncio.CancelledError):
        await anext(stream)
    (own,) = ended()
    assert own.status.status_code.name == "ERROR"


@pytest.mark.parametrize("name", ["completion", "completion, streamed"])
async def test_undone_while_a_call_is_under_way(name: str, provider: Provider, autolog: None):
    """A call that has begun is followed to its end: it has one span, which is in its request."""
    handle = instrument_litellm(provider.url)
    model = MINI + ("-slow-300" if name == "completion" else "-long")
    call = asyncio.create_task(make_call(name, provider, is_async=True, model=model))
    await asyncio.to_thread(wait_for, "the request", lambda: provider.requests)
    handle.uninstrument()
    undo_instrumentations()
    await call
    await asyncio.sleep(0.05)
    (own,) = ended()
    assert sent(provider) == [[named_by_otel(own)]]
    assert own.status.status_code.name == "OK"


@pytest.mark.parametrize("name", ["completion", "embedding", "responses"])
async def test_undone_before_a_call_is_logged(
    name: str, provider: Provider, autolog: None, monkeypatch: pytest.MonkeyPatch
):
    """A call that has ended and that LiteLLM logs later is not logged again by autolog itself."""
    to_log: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue()
    monkeypatch.setattr(
        GLOBAL_LOGGING_WORKER,
        "ensure_initialized_and_enqueue",
        lambda async_coroutine: to_log.put_nowait(async_coroutine),
    )
    await make_call(name, provider, is_async=True)
    logs = await to_log.get()
    assert len(ended()) == 1
    undo_instrumentations()
    await logs
    (own,) = ended()
    assert sent(provider) == [[named_by_otel(own)]]


async def test_undone_calls_are_let_go(provider: Provider, autolog: None):
    """Patches for calls that may still be logged are removed once LiteLLM has no such call."""
    with instrument_litellm(provider.url):
        await make_call("completion", provider, is_async=True)
    undo_instrumentations()
    await GLOBAL_LOGGING_WORKER.flush()

    def is_put_back() -> bool:
        # LiteLLM before 1.106 keeps the arguments of its latest call for error reports.
        getattr(litellm, "error_logs", {}).clear()
        gc.collect()
        return not _instrument._patches.handles and not hasattr(Logging.success_handler, "__wrapped__")

    await asyncio.to_thread(wait_for, "the end of the last call", is_put_back)


class OwnLogger(MlflowLogger):
    """A user's logger that derives from LiteLLM's."""

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        logged.append(response_obj)


logged: list[Any] = []


async def test_a_logger_of_the_users(provider: Provider, autolog: None, monkeypatch: pytest.MonkeyPatch):
    """A user's own subclass of LiteLLM's MLflow logger is called in addition to autolog's."""
    monkeypatch.setattr(litellm, "success_callback", [*litellm.success_callback, OwnLogger()])
    logged.clear()
    await make_call("completion", provider, is_async=False)
    await asyncio.to_thread(wait_for, "the logger", lambda: logged)
    assert len(ended()) == 1


@each_way
async def test_a_call_of_what_is_no_gateway_costs_no_client(
    is_async: bool, provider: Provider, autolog: None, monkeypatch: pytest.MonkeyPatch
):
    """No MLflow client is created for a call that needs no span of ours."""
    await make_call("completion", provider, is_async=is_async, api_base=other_host(provider))
    made: list[Any] = []
    monkeypatch.setattr("agent_gateway_client.litellm._logger.LiveLogger.__init__", lambda *args: made.append(args))
    await make_call("completion", provider, is_async=is_async, api_base=other_host(provider))
    assert made == []


def other_host(provider: Provider) -> str:
    return provider.url.replace("127.0.0.1", "localhost") + "/v1"


async def test_a_call_of_claude_that_was_given_up(provider: Provider, autolog: None):
    """A call through LiteLLM's own HTTP client that is cancelled in its back-off ends like one to OpenAI."""
    await give_up(provider, model=CLAUDE, num_retries=9)
    with mlflow.start_span("agent") as agent:
        assert trace_headers(provider.url) == {"traceparent": named_by(agent)}
    assert {span.status.status_code.name for span in ended()} == {"ERROR"}
