# ruff: noqa: F811 - fixtures that are imported are arguments too.
"""instrument_litellm(): every kind of call names its own span, and tokens are in the trace once."""

import asyncio
import gc
from typing import Any

import mlflow
import mlflow.litellm
import openai
import pytest
from client_support import (
    TRACEPARENT,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
)
from e2e_support import wait_for
from litellm_support import (
    CALLS,
    MESSAGES,
    STREAM,
    USAGE,
    autolog,  # noqa: F401
    each_way,
    ended,
    litellm,
    make_call,
    provider,  # noqa: F401
    sent,
    shared_provider,  # noqa: F401
)

from agent_gateway_client import trace_headers, wrap_httpx
from agent_gateway_client.demo.provider import Provider
from agent_gateway_client.propagation import model_call

# As an error, a warning of LiteLLM's or of what it stands on would be a call that fails.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    # LiteLLM keeps clients and tasks that belong to a loop.
    pytest.mark.asyncio(loop_scope="module"),
]

completion, acompletion = litellm.completion, litellm.acompletion

each_call = pytest.mark.parametrize("name", CALLS)


def usage(span: Any) -> Any:
    """Return the tokens of a span, in and out."""
    found = mlflow.entities.Span(span).get_attribute("mlflow.chat.tokenUsage")
    return found and (found["input_tokens"], found["output_tokens"])


@each_call
@each_way
async def test_without_autolog_a_call_names_the_active_span(name: str, is_async: bool, provider: Provider):
    """Every kind of call carries one header that names the active span, and no span is made for it."""
    with mlflow.start_span("agent") as agent:
        await make_call(name, provider, is_async=is_async)
    assert sent(provider) == [[named_by(agent)]]
    assert ended() == []
    assert model_call.get() is None


@each_call
@each_way
async def test_with_autolog_a_call_names_its_own_span(name: str, is_async: bool, provider: Provider, autolog: None):
    """Autolog's one span of a call is below the active one, is named by the request, and has the provider's tokens."""
    with mlflow.start_span("agent") as agent:
        await make_call(name, provider, is_async=is_async)
        # Logging that comes late must not make a second span.
        await asyncio.sleep(0.05)
    if (name, is_async) == ("moderation", False):  # which LiteLLM does not log
        assert sent(provider) == [[named_by(agent)]]
        return
    (own,) = ended()
    assert sent(provider) == [[named_by_otel(own)]]
    assert f"{own.parent.span_id:016x}" == agent.span_id
    assert own.status.status_code.name == "OK"
    assert usage(own) == USAGE.get(name)
    assert "mlflow.spanInputs" in own.attributes


@each_way
async def test_without_a_span_of_the_users_the_calls_own_is_the_trace(
    is_async: bool, provider: Provider, autolog: None
):
    """With nothing around it autolog's span is the root, and the one that is named."""
    await make_call("completion", provider, is_async=is_async)
    (own,) = ended()
    assert own.parent is None
    assert sent(provider) == [[named_by_otel(own)]]


@each_way
@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
async def test_both_transports_of_async_calls(
    is_async: bool, transport: str, provider: Provider, autolog: None, monkeypatch: pytest.MonkeyPatch
):
    """It does not matter whether LiteLLM's async client is on aiohttp or on httpx itself."""
    monkeypatch.setattr(litellm, "disable_aiohttp_transport", transport == "httpx")
    litellm.in_memory_llm_clients_cache.flush_cache()
    await make_call("completion", provider, is_async=is_async)
    (own,) = ended()
    assert sent(provider) == [[named_by_otel(own)]]


async def test_functions_imported_before_are_reached(provider: Provider, autolog: None):
    """What a program has imported from LiteLLM before instrument_litellm() is reached as well."""
    arguments = {
        "model": "openai/gpt-4o-mini",
        "messages": MESSAGES,
        "api_base": provider.url + "/v1",
        "api_key": "none",
    }
    completion(**arguments)
    await acompletion(**arguments)
    assert sent(provider) == [[named_by_otel(own)] for own in ended()]
    assert len(ended()) == 2


@each_way
async def test_a_call_that_fails_has_its_span_too(is_async: bool, provider: Provider, autolog: None):
    """The request of a call that fails names autolog's span, which has the status ERROR, and nothing stays behind."""
    with mlflow.start_span("agent") as agent, pytest.raises(litellm.InternalServerError):
        await make_call("completion", provider, is_async=is_async, model="openai/gpt-4o-mini-fail-500")
    (own,) = ended()
    assert sent(provider) == [[named_by_otel(own)]]
    assert (own.status.status_code.name, f"{own.parent.span_id:016x}") == ("ERROR", agent.span_id)
    with mlflow.start_span("next") as after:
        assert trace_headers(provider.url) == {"traceparent": named_by(after)}


@each_way
async def test_a_stream_that_breaks_has_its_span_too(is_async: bool, provider: Provider, autolog: None):
    """A stream that is cut off ends its span, with the status ERROR, before the caller's own ends."""
    failure = None
    with mlflow.start_span("agent"):
        try:
            await make_call("completion, streamed", provider, is_async=is_async, model="openai/gpt-4o-mini-broken")
        except openai.APIError as error:
            failure = error
        (own,) = ended()
    assert sent(provider) == [[named_by_otel(own)]]
    # Some versions of LiteLLM take the end of the connection for the end of the stream.
    assert own.status.status_code.name == ("ERROR" if failure else "OK")
    assert failure or is_async


@each_way
@pytest.mark.parametrize("parts", [0, 1])
async def test_a_stream_that_nobody_reads_to_its_end_has_its_span_too(
    is_async: bool, parts: int, provider: Provider, autolog: None
):
    """A stream that is dropped ends its span with it: MLflow keeps a trace back as long as one of its spans is open."""
    gc.disable()
    try:
        with mlflow.start_span("agent"):
            arguments = {"api_base": provider.url + "/v1", "api_key": "none", "messages": MESSAGES, **STREAM}
            if is_async:
                stream = await litellm.acompletion("openai/gpt-4o-mini-long", **arguments)
                for _ in range(parts):
                    await anext(stream)
            else:
                stream = litellm.completion("openai/gpt-4o-mini-long", **arguments)
                for _ in range(parts):
                    next(stream)
            assert ended() == []
            del stream
            # Of a sync stream LiteLLM's thread has a part for a moment longer.
            (own,) = await asyncio.to_thread(wait_for, "the end of the span", ended)
        with mlflow.start_span("next") as after:
            assert trace_headers(provider.url) == {"traceparent": named_by(after)}
    finally:
        gc.enable()
    assert sent(provider) == [[named_by_otel(own)]]


async def test_a_call_that_is_cancelled_has_its_span_too(provider: Provider, autolog: None):
    """A cancelled call ends its span, with the status ERROR, and the next request names the active span again."""
    with mlflow.start_span("agent"):
        model = "openai/gpt-4o-mini-slow-60000"
        call = asyncio.create_task(make_call("completion", provider, is_async=True, model=model))
        await asyncio.to_thread(wait_for, "the request", lambda: provider.requests)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        (own,) = ended()
        with mlflow.start_span("next") as after:
            assert trace_headers(provider.url) == {"traceparent": named_by(after)}
    assert sent(provider) == [[named_by_otel(own)]]
    assert own.status.status_code.name == "ERROR"


async def test_what_the_reader_of_a_stream_sends_is_its_own(provider: Provider, autolog: None):
    """Between the parts of a stream the active span is named again: the reader's requests are no part of the call."""
    import httpx

    client = wrap_httpx(httpx.Client(base_url=provider.url, trust_env=False))
    with mlflow.start_span("agent") as agent:
        stream = litellm.completion(
            "openai/gpt-4o-mini", MESSAGES, api_base=provider.url + "/v1", api_key="none", stream=True
        )
        client.get("/v1/models")
        for _ in stream:
            client.get("/v1/models")
        client.get("/v1/models")
    call, *others = sent(provider)
    assert call == [named_by_otel(*ended())]
    assert len(others) > 2
    assert others == [[named_by(agent)]] * len(others)


async def test_a_span_that_the_user_opens_inside_wins(provider: Provider, autolog: None):
    """A request that is sent inside a span of the user's own, deeper than the call, names that one."""
    from openai import DefaultHttpxClient, OpenAI

    spans = []

    class Own(DefaultHttpxClient):
        def send(self, *args: Any, **kwargs: Any) -> Any:
            with mlflow.start_span("inside") as span:
                spans.append(span)
                return super().send(*args, **kwargs)

    client = OpenAI(base_url=provider.url + "/v1", api_key="none", http_client=Own())
    with mlflow.start_span("agent"):
        litellm.completion("openai/gpt-4o-mini", MESSAGES, client=client)
    assert sent(provider) == [[named_by(span)] for span in spans]
    assert len(spans) == 1


@each_way
async def test_a_header_of_the_users_stays(is_async: bool, provider: Provider, autolog: None):
    """extra_headers with a traceparent are sent as they are."""
    with mlflow.start_span("agent"):
        await make_call("completion", provider, is_async=is_async, extra_headers={"TraceParent": TRACEPARENT})
    assert sent(provider) == [[TRACEPARENT]]


@each_way
async def test_the_clients_own_retries_are_of_one_call(is_async: bool, provider: Provider, autolog: None):
    """Every attempt of one call names the one span of that call."""
    with mlflow.start_span("agent"), pytest.raises(litellm.InternalServerError):
        await make_call("completion", provider, is_async=is_async, model="openai/gpt-4o-mini-fail-500", max_retries=1)
    assert sent(provider) == [[named_by_otel(*ended())]] * 2


@each_way
async def test_the_routers_attempts_are_calls_of_their_own(is_async: bool, provider: Provider, autolog: None):
    """Retries and fallbacks of the router each name a span of their own; one of them has the tokens."""
    common = {"api_base": provider.url + "/v1", "api_key": "none", "max_retries": 0}
    models = {"first": "openai/gpt-4o-mini-fail-500", "second": "openai/gpt-4o-mini"}
    router = litellm.Router(
        [{"model_name": name, "litellm_params": {"model": model, **common}} for name, model in models.items()],
        fallbacks=[{"first": ["second"]}],
        num_retries=1,
        retry_after=0,
    )
    with mlflow.start_span("agent") as agent:
        if is_async:
            await router.acompletion("first", MESSAGES)
        else:
            # In a thread that runs an event loop it would go on in one that knows no span.
            await asyncio.to_thread(router.completion, "first", MESSAGES)
    own = ended()
    assert [span.status.status_code.name for span in own] == ["ERROR", "ERROR", "OK"]
    assert sent(provider) == [[named_by_otel(span)] for span in own]
    assert {f"{span.parent.span_id:016x}" for span in own} == {agent.span_id}
    assert [usage(span) for span in own] == [None, None, (3, 5)]


@pytest.mark.parametrize("autologged", [False, True], ids=["without autolog", "with autolog"])
async def test_many_calls_at_once_each_name_their_own_span(autologged: bool, provider: Provider):
    """50 calls in one loop: each request names the span of its own call, below the span of its own agent."""
    if autologged:
        mlflow.litellm.autolog()
    agents = {}

    async def ask(number: int) -> None:
        with mlflow.start_span(f"agent {number}") as agents[number]:
            await litellm.acompletion(
                "openai/gpt-4o-mini-slow-50",
                [{"role": "user", "content": f"number {number}"}],
                api_base=provider.url + "/v1",
                api_key="none",
            )

    await asyncio.gather(*map(ask, range(50)))
    own = {f"{span.parent.span_id:016x}": named_by_otel(span) for span in ended()}
    expected = {
        f"number {number}": [own[agent.span_id] if autologged else named_by(agent)] for number, agent in agents.items()
    }
    assert len(expected) == 50
    assert {
        request.body["messages"][0]["content"]: request.header("traceparent") for request in provider.requests
    } == expected


async def test_other_hosts_get_nothing(provider: Provider, autolog: None):
    """A call of what is no gateway carries nothing, and autolog logs it as ever."""
    other = provider.url.replace("127.0.0.1", "localhost")
    with mlflow.start_span("agent") as agent:
        litellm.completion("openai/gpt-4o-mini", MESSAGES, api_base=other + "/v1", api_key="none")
    assert sent(provider) == [[]]
    (own,) = ended()
    assert f"{own.parent.span_id:016x}" == agent.span_id
