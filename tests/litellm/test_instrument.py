# ruff: noqa: F811 - fixtures that are imported are arguments too.
"""instrument_litellm(): every kind of call sends its own span, and tokens are in the trace once."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import pytest

from agent_gateway_client.active_span import model_call
from agent_gateway_client.demo.provider import Provider
from tests.support.client import (
    TRACEPARENT,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
)
from tests.support.litellm import (
    CALLS,
    CLAUDE,
    CLAUDE_MESSAGES,
    MESSAGES,
    MINI,
    arguments_for,
    autolog,  # noqa: F401
    each_call,
    each_way,
    ended,
    in_one_loop,
    litellm,
    make_call,
    parent_id,
    provider,  # noqa: F401
    redirected_to,
    sent,
    shared_provider,  # noqa: F401
    switch_autolog_on,
    usage,
)

pytestmark = in_one_loop

completion, acompletion = litellm.completion, litellm.acompletion


@each_call
async def test_without_autolog_a_call_names_the_active_span(name: str, is_async: bool, provider: Provider):
    """Every kind of call has one header with the active span, and no span is made for it."""
    with mlflow.start_span("agent") as agent:
        await make_call(name, provider, is_async=is_async)
    assert sent(provider) == [[named_by(agent)]]
    assert ended() == []
    assert model_call.get() is None


@each_call
async def test_with_autolog_a_call_names_its_own_span(name: str, is_async: bool, provider: Provider, autolog: None):
    """Autolog's only span of a call is below the active one, is in the request, and has the provider's tokens."""
    with mlflow.start_span("agent") as agent:
        await make_call(name, provider, is_async=is_async)
        # Late logging must not make a second span.
        await asyncio.sleep(0.05)
    if (name, is_async) == ("moderation", False):  # which LiteLLM does not log
        assert sent(provider) == [[named_by(agent)]]
        return
    own, *outer = ended()
    assert sent(provider) == [[named_by_otel(own)]]
    for inner, span in zip([own, *outer], outer, strict=False):
        assert parent_id(inner) == f"{span.get_span_context().span_id:016x}"
    assert parent_id([own, *outer][-1]) == agent.span_id
    # LiteLLM makes Claude's responses with a completion, which older versions log too.
    assert not outer or name == "responses of Claude"
    assert own.status.status_code.name == "OK"
    # Some versions of LiteLLM log no tokens of a stream; those of the mirror, which is below this span, are counted.
    assert usage(own) == CALLS[name].usage or (usage(own) is None and "streamed" in name)
    assert "mlflow.spanInputs" in own.attributes


@each_way
async def test_without_a_span_of_the_users_the_calls_own_is_the_trace(
    is_async: bool, provider: Provider, autolog: None
):
    """Without a surrounding span autolog's span is the root, and is in the request."""
    await make_call("completion", provider, is_async=is_async)
    (own,) = ended()
    assert own.parent is None
    assert sent(provider) == [[named_by_otel(own)]]


@each_way
@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
async def test_both_transports_of_async_calls(
    is_async: bool, transport: str, provider: Provider, autolog: None, monkeypatch: pytest.MonkeyPatch
):
    """LiteLLM's async client may use aiohttp or httpx."""
    monkeypatch.setattr(litellm, "disable_aiohttp_transport", transport == "httpx")
    litellm.in_memory_llm_clients_cache.flush_cache()
    await make_call("completion", provider, is_async=is_async)
    (own,) = ended()
    assert sent(provider) == [[named_by_otel(own)]]


async def test_functions_imported_before_are_reached(provider: Provider, autolog: None):
    """Functions that a program imported from LiteLLM before instrument_litellm() are covered too."""
    completion(messages=MESSAGES, **arguments_for(provider))
    await acompletion(messages=MESSAGES, **arguments_for(provider))
    assert sent(provider) == [[named_by_otel(own)] for own in ended()]
    assert len(ended()) == 2


async def test_a_span_that_the_user_opens_inside_wins(provider: Provider, autolog: None):
    """A request sent inside the user's own span within the call has that span as parent."""
    from openai import DefaultHttpxClient, OpenAI

    spans = []

    class Own(DefaultHttpxClient):
        def send(self, *args: Any, **kwargs: Any) -> Any:
            with mlflow.start_span("inside") as span:
                spans.append(span)
                return super().send(*args, **kwargs)

    client = OpenAI(base_url=provider.url + "/v1", api_key="none", http_client=Own())
    with mlflow.start_span("agent"):
        litellm.completion(MINI, MESSAGES, client=client)
    assert sent(provider) == [[named_by(span)] for span in spans]
    assert len(spans) == 1


@each_way
async def test_a_header_of_the_users_stays(is_async: bool, provider: Provider, autolog: None):
    """extra_headers with a traceparent are sent unchanged."""
    with mlflow.start_span("agent"):
        await make_call("completion", provider, is_async=is_async, extra_headers={"TraceParent": TRACEPARENT})
    assert sent(provider) == [[TRACEPARENT]]


@each_way
@pytest.mark.parametrize("autologged", [False, True], ids=["without autolog", "with autolog"])
async def test_50_calls_at_once_each_name_their_own_span(is_async: bool, autologged: bool, provider: Provider):
    """50 tasks or threads: each request has its own call's span, below its own agent's span."""
    if autologged:
        switch_autolog_on()
    agents: dict[int, Any] = {}

    def arguments(number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"number {number}"}]
        return {**arguments_for(provider, MINI + "-slow-50"), "messages": messages}

    async def in_a_task(number: int) -> None:
        with mlflow.start_span(f"agent {number}") as agents[number]:
            await litellm.acompletion(**arguments(number))

    def in_a_thread(number: int) -> None:
        with mlflow.start_span(f"agent {number}") as agents[number]:
            litellm.completion(**arguments(number))

    if is_async:
        await asyncio.gather(*map(in_a_task, range(50)))
    else:
        with ThreadPoolExecutor(50) as threads:
            list(threads.map(in_a_thread, range(50)))
    own = {parent_id(span): named_by_otel(span) for span in ended()}
    expected = {
        f"number {number}": [own[agent.span_id] if autologged else named_by(agent)] for number, agent in agents.items()
    }
    assert len(expected) == 50
    assert len(provider.requests) == 50
    assert {
        request.body["messages"][0]["content"]: request.header("traceparent") for request in provider.requests
    } == expected


async def test_other_hosts_get_nothing(provider: Provider, autolog: None):
    """A call to a host that is not a gateway has no header, and autolog logs it as usual."""
    other = provider.url.replace("127.0.0.1", "localhost")
    with mlflow.start_span("agent") as agent:
        litellm.completion(MINI, MESSAGES, api_base=other + "/v1", api_key="none")
    assert sent(provider) == [[]]
    (own,) = ended()
    assert parent_id(own) == agent.span_id


@pytest.mark.parametrize(
    "ask",
    [
        lambda url: litellm.completion(MINI, MESSAGES, api_base=url + "/v1", api_key="none"),
        lambda url: litellm.acompletion(MINI, MESSAGES, api_base=url + "/v1", api_key="none"),
        lambda url: litellm.completion(CLAUDE, MESSAGES, api_base=url, api_key="none"),
        lambda url: litellm.acompletion(CLAUDE, MESSAGES, api_base=url, api_key="none"),
        lambda url: litellm.anthropic.messages.acreate(model=CLAUDE, api_base=url, api_key="none", **CLAUDE_MESSAGES),
    ],
    ids=["openai", "openai-async", "httpx", "httpx-async", "messages-async"],
)
async def test_a_redirect_to_another_host_loses_the_header(ask: Callable[[str], Any], provider: Provider):
    """With OpenAI's client and with LiteLLM's own, the redirected request has no header."""
    with redirected_to(provider) as (gateway, received), mlflow.start_span("agent") as agent:
        result = ask(gateway)
        if asyncio.iscoroutine(result):
            await result
    assert received == [[named_by(agent)]]
    assert sent(provider) == [[]]
