"""The LiteLLM Proxy's callback with events in orders and shapes that no test can provoke in the real proxy.

The shapes were observed in litellm 1.106.2; tests/e2e/test_litellm_proxy*.py run the real proxy.
"""

import asyncio
import json
import logging
import sys
import threading
import types
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from zlib import crc32

import litellm
import pytest
from fastapi import FastAPI
from litellm.llms.anthropic.chat.transformation import AnthropicConfig
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.types_utils.utils import get_instance_fn
from opentelemetry.sdk.trace import ReadableSpan

from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.server import litellm_proxy, shared
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.litellm_proxy import LiteLLMProxyMirror, _callback, _calls, _facts
from tests.support.providers import CLAUDE_TOKENS, CLAUDE_USAGE
from tests.support.server import PARENT, TRACEPARENT, MemoryDestination, facts_of, ids_of

# LiteLLM's router makes pydantic read LiteLLM's own types.
pytestmark = pytest.mark.filterwarnings("ignore:Item:UserWarning")

CANARY = "c4n4ry"
NOW_S = 1_800_000_000.0
SERVER = "litellm.proxy.proxy_server"


DEPLOYMENTS = [
    ("chat", "gpt-4o-mini"), ("chat", "slow"), ("chat", "slower"), ("other", "gpt-4o"), ("any/*", "*")
]  # fmt: skip


def deployment_id(group: str, model: str) -> str:
    """Return LiteLLM's id of a deployment; with a wildcard, all models have the same id."""
    return "id of *" if "*" in group else f"id of {model}"


def key() -> dict[str, Any]:
    """Return the metadata of a request that the proxy has authenticated."""
    return {"user_api_key_auth": UserAPIKeyAuth()}


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module of the proxy's server, with a real router."""
    server = types.ModuleType(SERVER)
    server.llm_router = litellm.Router(  # type: ignore[attr-defined]
        model_list=[
            {
                "model_name": group,
                "litellm_params": {"model": f"openai/{model}", "api_key": "none"},
                "model_info": {"id": deployment_id(group, model)},
            }
            for group, model in DEPLOYMENTS
        ],
        model_group_alias={"alias": "chat"},
    )
    monkeypatch.setitem(sys.modules, SERVER, server)
    return server


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait for events that do not arrive."""
    monkeypatch.setattr(_callback, "NO_HOOK_SECONDS", 0.01)
    monkeypatch.setattr(_callback, "LATE_EVENT_SECONDS", 0.01)


def request(
    call_id: str = "1", headers: Any = None, arrival_time: float | None = 0, method: str = "POST", **more: Any
) -> dict[str, Any]:
    """Return a request's data as the proxy's hooks get it. By default, each call id belongs to one request."""
    headers = {"traceparent": TRACEPARENT} if headers is None else headers
    http = {"url": "http://gw:4000/v1/chat/completions", "method": method, "headers": headers}
    if arrival_time is not None:
        http["arrival_time"] = arrival_time or (NOW_S if call_id == "1" else NOW_S + crc32(call_id.encode()) / 2**32)
    asked = {"litellm_call_id": call_id, "messages": [{"content": CANARY}], "metadata": key()}
    return {**asked, "proxy_server_request": http, **more}


def details(group: str = "chat", model: str = "gpt-4o-mini", first_group: str | None = None, **more: Any) -> Any:
    """Return a call's details as LiteLLM logs them, with the router's choice in the metadata."""
    asked = request(**{key: more.pop(key) for key in ("call_id", "headers", "arrival_time") if key in more})
    routing = {
        "model_group": group,
        "original_model_group": first_group or group,
        "deployment_model_name": group,
        "model_info": {"id": deployment_id(group, model)},
        **key(),
    }
    return {
        "litellm_call_id": asked["litellm_call_id"],
        "litellm_params": {"proxy_server_request": asked["proxy_server_request"], "metadata": routing},
        "call_type": "acompletion",
        "model": model,
        "custom_llm_provider": "openai",
        "messages": [{"content": CANARY}],
        **more,
    }


def success(model: str = "gpt-4o-mini", group: str = "chat", **payload: Any) -> Any:
    """Return the details of a logged success."""
    of_call = {key: payload.pop(key) for key in ("call_id", "arrival_time", "call_type") if key in payload}
    logged = {
        "model_id": deployment_id(group, model),
        "endTime": NOW_S + 2,
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "response_cost": 0.3,
        "cost_breakdown": {"input_cost": 0.1, "output_cost": 0.2},
        "cache_hit": False,
        "metadata": {"usage_object": {"prompt_tokens_details": {"cached_tokens": 1}}},
        **payload,
    }
    return details(group, model, standard_logging_object=logged, **of_call)


def test_cache_writes_for_one_hour():
    """LiteLLM's usage object for an Anthropic answer contains them, and its cost includes them."""
    usage = AnthropicConfig().calculate_usage(CLAUDE_USAGE, None)
    payload = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "metadata": {"usage_object": usage.model_dump()},
    }
    read = _facts.token_usage(payload)
    assert read is not None
    assert replace(read, reasoning_output_tokens=None) == CLAUDE_TOKENS


def ask(mirror: LiteLLMProxyMirror, *args: Any, **more: Any) -> None:
    """Report that a provider is asked."""
    mirror.log_pre_api_call("", CANARY, details(*args, **more))


async def fail(mirror: LiteLLMProxyMirror, error: Exception, model: str = "gpt-4o-mini") -> None:
    """Report that a deployment has failed."""
    arguments = request(model_info={"id": f"id of {model}"})
    await mirror.async_post_call_failure_deployment_hook(arguments, error, None)


async def log(mirror: LiteLLMProxyMirror, logged: Any) -> None:
    """Report a logged success."""
    await mirror.async_log_success_event(logged, None, None, None)


async def respond(mirror: LiteLLMProxyMirror) -> None:
    """Report that the response is ready."""
    await mirror.async_post_call_success_hook(request(), None, None)


async def stream(mirror: LiteLLMProxyMirror, chunks: AsyncIterator[Any]) -> list[Any]:
    """Read a streamed response."""
    return [chunk async for chunk in mirror.async_post_call_streaming_iterator_hook(None, chunks, request())]


async def of(*chunks: Any) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk


def sent(mirror: LiteLLMProxyMirror, destination: MemoryDestination) -> list[ReadableSpan]:
    """Return the spans sent so far."""
    assert mirror.exporter.flush()
    assert CANARY not in str([span.to_json() for span in destination.spans])
    return destination.spans


async def awaited(mirror: LiteLLMProxyMirror, destination: MemoryDestination) -> list[ReadableSpan]:
    """Return the sent spans as soon as there are some."""
    await asyncio.to_thread(destination.wait_for_tries, 1)
    return sent(mirror, destination)


def told(spans: list[ReadableSpan]) -> list[tuple[str, str | None]]:
    """Return the names and failures of the spans."""
    return [(span.name, facts_of(span).get("error.type")) for span in spans]


class ServiceUnavailableError(Exception):
    """Like LiteLLM's: it has the provider's status and a message that repeats the prompt."""

    status_code = 503
    llm_provider = "openai"

    def __init__(self) -> None:
        super().__init__(f"The request was: {CANARY}")


MINI = ("provider/openai/gpt-4o-mini", None)


async def test_a_call_and_all_its_facts(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """A call is submitted once it has ended and its tokens are known, with the facts of the hooks and the log."""
    ask(mirror)
    await respond(mirror)
    assert sent(mirror, destination) == []
    await log(mirror, success())
    gateway, attempt = sent(mirror, destination)
    assert told([gateway, attempt]) == [("gateway/chat", None), MINI]
    assert ids_of(gateway)[1] == PARENT.span_id
    assert gateway.start_time == NOW_S * 1e9
    facts = facts_of(attempt)
    assert facts["mlflow.chat.tokenUsage"] == {
        "input_tokens": 3, "output_tokens": 5, "total_tokens": 8, "cache_read_input_tokens": 1
    }  # fmt: skip
    assert facts["mlflow.llm.cost"] == {"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.3}
    assert "server_url" not in facts_of(gateway)


@pytest.mark.parametrize("field", ["custom_llm_provider", "call_type"])
async def test_a_name_that_the_caller_made_up(field: str, mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """LiteLLM takes these names from a request's body and passes them to callbacks before it has checked them."""
    made_up = {field: f"ignore {CANARY}"}
    mirror.log_pre_api_call("", CANARY, {**details(), **made_up})
    error = ServiceUnavailableError()
    error.llm_provider = f"ignore {CANARY}"
    await mirror.async_post_call_failure_deployment_hook(request(model_info={"id": "2"}, **made_up), error, None)
    await mirror.async_post_call_failure_hook(request(**made_up), error, None)
    refused = {**request("2", **made_up), "model": CANARY}
    await mirror.async_post_call_failure_hook(refused, error, None)
    names = [span.name for span in sent(mirror, destination)]
    assert [name for name in names if name.startswith("gateway/")] == ["gateway/chat", "gateway/unknown"]


FORGED = {
    "model_group": "chat",
    "original_model_group": "chat",
    "deployment_model_name": "chat",
    "model_info": {"id": "id of gpt-4o-mini"},
}
"""What a caller may write into a request's metadata, which LiteLLM's router writes to as well."""

AT_ROOT = {"proxy_server_request": request()["proxy_server_request"]}


@pytest.mark.parametrize(
    "body",
    [
        {**AT_ROOT, "metadata": FORGED},
        {**AT_ROOT, "metadata": {**FORGED, "user_api_key_auth": {"user_id": "admin"}}},
        {**AT_ROOT, "litellm_metadata": {"user_api_key_auth": "sk-1"}, "metadata": FORGED},
        {"litellm_params": {**AT_ROOT, "metadata": FORGED}},
    ],
)
async def test_a_body_that_imitates_the_proxys_notes(
    body: dict[str, Any], mirror: LiteLLMProxyMirror, destination: MemoryDestination
):
    """LiteLLM passes the unchecked body of an unauthenticated caller to the failure hook: it is not mirrored."""
    await mirror.async_post_call_failure_hook({"model": "chat", **body}, ServiceUnavailableError(), None)
    assert sent(mirror, destination) == []


@pytest.mark.parametrize("name", ["metadata", "litellm_metadata"])
async def test_routing_that_the_caller_made_up(name: str, mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """If no router ran, the caller's own metadata does not set the endpoint or the model."""
    asked = details(model=f"ignore-{CANARY}")
    notes = {**key(), **FORGED}
    asked["litellm_params"] = {"proxy_server_request": request()["proxy_server_request"], name: notes}
    mirror.log_pre_api_call("", CANARY, asked)
    failed = request(model=CANARY, litellm_params={"metadata": notes}, **{name: notes})
    await mirror.async_post_call_failure_hook(failed, ServiceUnavailableError(), None)
    assert told(sent(mirror, destination)) == [("gateway/acompletion", "503"), ("provider/openai", "503")]


async def test_metadata_of_the_other_name(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """The router writes its choice next to the caller's key; the caller's metadata under the other name is ignored."""
    asked = details("other", "gpt-4o")
    asked["litellm_params"]["litellm_metadata"] = asked["litellm_params"].pop("metadata")
    asked["litellm_params"]["metadata"] = FORGED
    mirror.log_pre_api_call("", CANARY, asked)
    await mirror.async_post_call_failure_hook(request(model="other"), ServiceUnavailableError(), None)
    assert told(sent(mirror, destination)) == [("gateway/other", "503"), ("provider/openai/gpt-4o", "503")]


async def test_a_model_whose_name_reads_as_a_providers(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """If the provider is unknown, the requested model is left out: it would be taken for a provider's."""
    ask(mirror, "any/*", "ignore-that/openai/x", custom_llm_provider="ignore-that")
    await respond(mirror)
    logged = success("ignore-that/openai/x", "any/*", custom_llm_provider="ignore-that")
    await log(mirror, logged)
    assert told(sent(mirror, destination)) == [("gateway/any/*", None), ("provider", None)]


async def test_a_provider_of_the_proxys_own(
    mirror: LiteLLMProxyMirror, destination: MemoryDestination, monkeypatch: pytest.MonkeyPatch
):
    """A custom provider from the proxy's configuration is recognized."""
    monkeypatch.setattr(litellm, "custom_provider_map", [{"provider": "in-house", "custom_handler": object()}])
    ask(mirror, custom_llm_provider="in-house")
    await respond(mirror)
    await log(mirror, success())
    assert told(sent(mirror, destination))[1] == ("provider/in-house/gpt-4o-mini", None)


async def test_a_retry_with_the_same_call_id(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """A caller may send x-litellm-call-id, and an SDK repeats it in a retry: these are two requests."""
    ask(mirror, call_id="chosen")
    await mirror.async_post_call_failure_hook(request("chosen"), ServiceUnavailableError(), None)
    ask(mirror, call_id="chosen", arrival_time=NOW_S + 1)
    await mirror.async_post_call_success_hook(request("chosen", arrival_time=NOW_S + 1), None, None)
    await log(mirror, success(call_id="chosen", arrival_time=NOW_S + 1))
    assert told(sent(mirror, destination)) == [("gateway/chat", "503"), (MINI[0], "503"), ("gateway/chat", None), MINI]


async def test_a_call_within_a_call(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """LiteLLM serves Gemini's route with a chat completion that has another call id: one request, one mirror."""
    inner = details(call_id="inner", arrival_time=NOW_S)
    inner["litellm_params"]["metadata"] = key()
    mirror.log_pre_api_call("", CANARY, inner)
    await mirror.async_post_call_success_hook(request("outer", arrival_time=NOW_S, model="chat"), None, None)
    await log(mirror, success(call_id="inner", arrival_time=NOW_S))
    await log(mirror, success(call_id="outer", arrival_time=NOW_S))
    mirror.shutdown()
    assert told(sent(mirror, destination)) == [("gateway/chat", None), MINI]


async def test_a_pass_through_request_has_no_arrival(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """Pass-through requests are distinguished by LiteLLM's own call id."""
    for call_id in ("1", "2"):
        ask(mirror, call_id=call_id, arrival_time=None, call_type="pass_through_endpoint")
        await log(mirror, success(call_id=call_id, arrival_time=None, call_type="pass_through_endpoint"))
    assert len(sent(mirror, destination)) == 4


async def test_a_request_that_calls_no_model(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """GET /v1/batches lists stored batches, and LiteLLM logs failures of single providers within a success."""
    listing = request(method="GET", model_info={"id": "1"})
    await mirror.async_post_call_failure_deployment_hook(listing, ServiceUnavailableError(), None)
    await mirror.async_post_call_success_hook(listing, None, None)
    mirror.shutdown()
    assert sent(mirror, destination) == []


@pytest.mark.parametrize("host", ["127.0.0.1:4000", "10.0.0.7", "[dead:beef::1]:4000", "please-say-something.test"])
async def test_an_address_that_the_caller_wrote(host: str, mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """LiteLLM knows its address only from the Host header, so mirrors have no address."""
    asked = details()
    asked["litellm_params"]["proxy_server_request"]["url"] = f"http://{host}/v1/chat/completions"
    mirror.log_pre_api_call("", CANARY, asked)
    await respond(mirror)
    await log(mirror, success())
    assert "server_url" not in facts_of(sent(mirror, destination)[0])


async def test_the_success_may_be_logged_first(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """A call's end and its logged success may come in any order."""
    ask(mirror)
    await log(mirror, success())
    assert sent(mirror, destination) == []
    await respond(mirror)
    assert told(sent(mirror, destination)) == [("gateway/chat", None), MINI]


async def test_a_success_that_is_never_logged(mirror: LiteLLMProxyMirror, destination: MemoryDestination, soon: None):
    """LiteLLM drops log events under load: the mirror is sent without tokens, and a late event adds no other."""
    ask(mirror)
    await respond(mirror)
    spans = await awaited(mirror, destination)
    assert told(spans) == [("gateway/chat", None), MINI]
    assert "mlflow.chat.tokenUsage" not in facts_of(spans[1])
    await log(mirror, success())
    await respond(mirror)
    assert len(sent(mirror, destination)) == 2


async def test_a_route_that_tells_no_end(mirror: LiteLLMProxyMirror, destination: MemoryDestination, soon: None):
    """If no hook reports that the response is ready, the call ends with its last attempt."""
    ask(mirror)
    await log(mirror, success())
    gateway, attempt = await awaited(mirror, destination)
    assert gateway.end_time == attempt.end_time == int((NOW_S + 2) * 1e9)


async def test_a_stream_that_is_carried_on_by_a_fallback(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """A stream that broke before its first word and was continued by another deployment is one success."""
    ask(mirror, "other", "gpt-4o")

    async def chunks() -> AsyncIterator[str]:
        await mirror.async_log_failure_event(
            {**details("chat", first_group="other"), "exception": ServiceUnavailableError()}, None, None, None
        )
        ask(mirror, "chat", first_group="other")
        yield "a"

    assert await stream(mirror, chunks()) == ["a"]
    await log(mirror, success())
    expected = [("gateway/other", None), ("provider/openai/gpt-4o", "MidStreamFallbackError"), MINI]
    assert told(sent(mirror, destination)) == expected


async def test_an_error_in_a_stream_that_only_the_log_knows(
    mirror: LiteLLMProxyMirror, destination: MemoryDestination, soon: None
):
    """On some routes LiteLLM writes an error into the stream and ends it normally; only the log has the error."""
    ask(mirror)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"event: content_block_delta\n\n"
        logged = {**details(), "exception": ServiceUnavailableError()}
        await mirror.async_log_failure_event(logged, None, None, None)
        yield b"event: error\n\n"

    assert len(await stream(mirror, chunks())) == 2
    assert told(await awaited(mirror, destination)) == [("gateway/chat", "503"), (MINI[0], "503")]


async def test_a_stream_that_fails_and_nobody_tells_the_client(
    mirror: LiteLLMProxyMirror, destination: MemoryDestination, soon: None
):
    """An exception in a stream fails the call even if no hook reports it."""
    ask(mirror)

    async def chunks() -> AsyncIterator[str]:
        yield "a"
        raise ServiceUnavailableError

    with pytest.raises(ServiceUnavailableError):
        await stream(mirror, chunks())
    assert told(await awaited(mirror, destination)) == [("gateway/chat", "503"), (MINI[0], "503")]


@pytest.mark.parametrize(
    ("chunk", "error"),
    [
        ("a", "client_disconnect"),
        (b'event: message_stop\ndata: {"type": "message_stop"}\n\n', None),
        (b'event: content_block_delta\ndata: {"text": "event: message_stop"}\n\n', "client_disconnect"),
        (b'data: {"candidates": [{"finishReason": "STOP"}]}\n\n', None),
        (types.SimpleNamespace(type="response.completed"), None),
        (types.SimpleNamespace(type="response.output_text.delta"), "client_disconnect"),
        (types.SimpleNamespace(choices=[types.SimpleNamespace(finish_reason="stop")]), None),
    ],
)
async def test_a_client_that_closes_a_stream(
    chunk: Any, error: str | None, mirror: LiteLLMProxyMirror, destination: MemoryDestination
):
    """A client that closes the connection has disconnected early, unless it had received the API's last event."""
    ask(mirror)
    streaming = mirror.async_post_call_streaming_iterator_hook(None, of(chunk, "more"), request())
    assert await anext(streaming) is chunk
    await streaming.aclose()
    await log(mirror, success())
    assert told(sent(mirror, destination)) == [("gateway/chat", error), (MINI[0], error)]


async def test_several_attempts_at_once(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """If several models are asked at once, the one that answered is the success and the others were abandoned."""
    for model in ("slow", "gpt-4o-mini", "slower"):
        ask(mirror, "chat", model)
    await respond(mirror)
    await log(mirror, success())
    given_up = [("provider/openai/slow", "CancelledError"), ("provider/openai/slower", "CancelledError")]
    assert told(sent(mirror, destination)) == [("gateway/chat", None), given_up[0], MINI, given_up[1]]


async def test_a_failure_that_is_told_twice(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """A call within a call fails once, although LiteLLM reports both failures."""
    ask(mirror)
    await fail(mirror, ServiceUnavailableError())
    await fail(mirror, ServiceUnavailableError())
    await mirror.async_post_call_failure_hook(request(), ServiceUnavailableError(), None)
    assert told(sent(mirror, destination)) == [("gateway/chat", "503"), (MINI[0], "503")]


async def test_a_deployment_that_fails_before_its_provider_is_asked(
    mirror: LiteLLMProxyMirror, destination: MemoryDestination
):
    """A deployment that fails early, for example without a key, is a failed attempt; the next one is another."""
    await fail(mirror, ServiceUnavailableError(), "gpt-4o")
    ask(mirror)
    await respond(mirror)
    await log(mirror, success())
    assert told(sent(mirror, destination)) == [("gateway/chat", None), ("provider/openai", "503"), MINI]


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ServiceUnavailableError(), "503"),
        (litellm.Timeout(CANARY, "m", "openai"), "Timeout"),
        (litellm.APIConnectionError(CANARY, "openai", "m"), "APIConnectionError"),
        (litellm.RateLimitError(CANARY, "openai", "m"), "429"),
        (KeyError(CANARY), "KeyError"),
    ],
)
async def test_what_an_attempt_failed_of(
    error: Exception, name: str, mirror: LiteLLMProxyMirror, destination: MemoryDestination
):
    """The error type is the provider's HTTP status or, if there is none, the exception's class; never its message."""
    ask(mirror)
    await fail(mirror, error)
    await mirror.async_post_call_failure_hook(request(), error, None)
    gateway, attempt = sent(mirror, destination)
    assert facts_of(attempt)["error.type"] == name
    assert facts_of(gateway)["error.type"] == str(facts_of(gateway)["http.response.status_code"])


async def test_names_that_a_caller_can_choose(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """The endpoint is a name from the configuration; a model chosen by the caller is mirrored if it has answered."""
    ask(mirror, "any/*", "gpt-5", first_group=f"any/{CANARY}")
    ask(mirror, "any/*", CANARY, call_id="2")
    await mirror.async_post_call_failure_hook(request("2", model=f"any/{CANARY}"), ServiceUnavailableError(), None)
    await respond(mirror)
    logged = success("gpt-5", "any/*")
    logged["litellm_params"]["metadata"]["original_model_group"] = "any/*"
    await log(mirror, logged)
    expected = [("gateway/any/*", "503"), ("provider/openai", "503"), ("gateway/any/*", None)]
    assert told(sent(mirror, destination)) == [*expected, ("provider/openai/gpt-5", None)]


@pytest.mark.parametrize(
    ("model", "name"), [("alias", "gateway/alias"), ("chat", "gateway/chat"), (CANARY, "gateway/acompletion")]
)
async def test_a_request_that_no_deployment_gets(
    model: str, name: str, mirror: LiteLLMProxyMirror, destination: MemoryDestination
):
    """A request that the proxy itself rejects has a mirror without attempts, with the model if the proxy knows it."""
    refused = request(model=model)
    mirror.log_pre_api_call("", CANARY, {**details(model), "litellm_no_upstream_llm_call": True})
    await mirror.async_post_call_failure_hook(refused, ServiceUnavailableError(), None)
    assert told(sent(mirror, destination)) == [(name, "503")]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "nonsense"},
        {"traceparent": f"{TRACEPARENT[:-2]}00"},
    ],
    ids=["none", "invalid", "unsampled"],
)
async def test_callers_that_are_not_tracing(
    headers: dict[str, str], mirror: LiteLLMProxyMirror, destination: MemoryDestination
):
    """Nothing is kept of a request without a valid, sampled traceparent, and its stream passes unchanged."""
    ask(mirror, headers=headers)
    data = request(headers=headers)
    await mirror.async_post_call_success_hook(data, None, None)
    streaming = mirror.async_post_call_streaming_iterator_hook(None, of("a", "b"), data)
    assert [chunk async for chunk in streaming] == ["a", "b"]
    assert sent(mirror, destination) == []
    assert mirror._calls._open == {}


async def test_calls_of_one_id(mirror: LiteLLMProxyMirror, destination: MemoryDestination):
    """Callers can set LiteLLM's call ids; the same id in two traces means two calls."""
    other = TRACEPARENT.replace("b7ad6b7169203331", "00f067aa0ba902b7")
    ask(mirror)
    ask(mirror, "other", "gpt-4o", headers={"traceparent": other})
    await mirror.async_post_call_failure_hook(request(), ServiceUnavailableError(), None)
    data = request(headers={"traceparent": other})
    await mirror.async_post_call_failure_hook(data, ServiceUnavailableError(), None)
    gateways = [span for span in sent(mirror, destination) if span.name.startswith("gateway/")]
    assert [(span.name, f"{ids_of(span)[1]:016x}") for span in gateways] == [
        ("gateway/chat", "b7ad6b7169203331"),
        ("gateway/other", "00f067aa0ba902b7"),
    ]


async def test_what_never_ends_is_forgotten(
    mirror: LiteLLMProxyMirror,
    destination: MemoryDestination,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """The number and the age of open requests are bounded; one warning reports those that are forgotten."""
    monkeypatch.setattr(_calls, "MAX_OPEN_CALLS", 10)
    for number in range(100):
        ask(mirror, call_id=str(number), arrival_time=None)
    assert [key[0] for key in mirror._calls._open] == [str(number) for number in range(90, 100)]
    monkeypatch.setattr(_calls, "MAX_AGE_SECONDS", -1.0)
    ask(mirror, call_id="100", arrival_time=None)
    assert [key[0] for key in mirror._calls._open] == ["100"]
    assert len([record for record in caplog.records if "the oldest are not mirrored" in record.message]) == 1
    for number in range(30):
        await mirror.async_post_call_failure_hook(request(f"f{number}"), ServiceUnavailableError(), None)
    assert len(mirror._calls._closed) == 10


@pytest.mark.usefixtures("guards_hold")
async def test_a_shape_that_is_not_known_is_no_matter_for_the_request(
    mirror: LiteLLMProxyMirror, destination: MemoryDestination, caplog: pytest.LogCaptureFixture
):
    """Whatever LiteLLM passes, no callback raises, streams pass, and one warning says what to do."""
    odd: Any = {"litellm_call_id": 1, "proxy_server_request": {"headers": {"traceparent": 5}}, "litellm_params": 7}
    mirror.log_pre_api_call(None, None, odd)
    await mirror.async_post_call_success_deployment_hook(odd, None, None)
    await mirror.async_post_call_failure_deployment_hook(odd, KeyError(), None)
    await mirror.async_post_call_success_hook(odd, None, None)
    await mirror.async_post_call_failure_hook(odd, KeyError(), None)
    await mirror.async_log_success_event(odd, None, None, None)
    await mirror.async_log_failure_event(odd, None, None, None)
    streaming = mirror.async_post_call_streaming_iterator_hook(None, of("a", "b"), odd)
    assert [chunk async for chunk in streaming] == ["a", "b"]
    ask(mirror)
    await log(mirror, details(standard_logging_object={"total_tokens": "many", "metadata": 3}))
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Could not read an event of LiteLLM" in warning.message
    assert f"litellm {metadata.version('litellm')}" in warning.message
    assert CANARY not in warning.message


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without an exporter."""
    monkeypatch.setattr(shared, "_exporter", None)
    monkeypatch.delitem(vars(litellm_proxy), "mirror", raising=False)
    for name in ("MLFLOW_TRACKING_URI", "AGENT_GATEWAY_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


async def test_the_configurations_line(fresh: None, server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """LiteLLM finds the callback by its dotted path wherever the configuration is; one object is shared and flushed."""
    monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    stopped: list[str] = []

    async def proxy_shutdown_event(worker_heartbeat: Any = None) -> None:
        stopped.append("litellm")

    server.proxy_shutdown_event = proxy_shutdown_event
    path = "agent_gateway_client.server.litellm_proxy.mirror"
    found = get_instance_fn(path, config_file_path=str(tmp_path / "config.yaml"))
    assert isinstance(found, LiteLLMProxyMirror)
    assert get_instance_fn(path) is found
    assert found.exporter is shared.shared_exporter()
    monkeypatch.setattr(found.exporter, "shutdown", lambda: stopped.append(threading.current_thread().name))
    await server.proxy_shutdown_event(worker_heartbeat=None)
    # Not in the event loop's thread, which must finish other requests.
    assert stopped == ["litellm", ANY]
    assert stopped[1] != threading.current_thread().name


@pytest.mark.parametrize("missing", ["app", "user_api_key_auth"])
def test_a_litellm_whose_application_is_elsewhere(
    missing: str, fresh: None, server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The mirror has no status, one warning says so, and everything else works."""
    monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", "otlp")
    server.app, server.user_api_key_auth = FastAPI(), lambda: None
    before = len(server.app.routes)
    monkeypatch.delattr(server, missing)
    assert isinstance(litellm_proxy.mirror, LiteLLMProxyMirror)
    assert "no page /agent-gateway/status" in caplog.text
    assert len(getattr(server, "app", FastAPI()).routes) == before


@pytest.mark.parametrize(
    ("environment", "told"), [({}, "MLFLOW_TRACKING_URI"), ({"AGENT_GATEWAY_EXPORTER": "pigeon"}, "the exporters are")]
)
def test_an_environment_that_cannot_work(
    environment: dict[str, str], told: str, fresh: None, monkeypatch: pytest.MonkeyPatch
):
    """An invalid environment raises an error when LiteLLM reads its configuration."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=told):
        get_instance_fn("agent_gateway_client.server.litellm_proxy.mirror")


def is_ours(scope: Any) -> bool:
    assert scope["path"] == "/v1/chat/completions"
    assert (b"traceparent", TRACEPARENT.encode()) in scope["headers"]
    return bool(scope["user"].team_id == "ours")


async def is_ours_async(scope: Any) -> bool:
    await asyncio.sleep(0)
    return is_ours(scope)


@pytest.mark.parametrize("may_join", [is_ours, is_ours_async], ids=["sync", "async"])
@pytest.mark.parametrize("way", ["answer", "stream", "failure", "stop"])
async def test_who_may_join(way: str, may_join: Any, destination: MemoryDestination):
    """A predicate decides by the caller that LiteLLM knows, however the request ends, and also when the proxy stops."""
    mirror = LiteLLMProxyMirror(Exporter(destination), may_join)
    for team in ("theirs", "ours"):
        data = request(team)
        user = types.SimpleNamespace(team_id=team)
        logged = {**success(), "litellm_call_id": team}
        if way == "failure":
            await mirror.async_post_call_failure_hook(data, RuntimeError(), user)
        elif way == "stream":
            async for _ in mirror.async_post_call_streaming_iterator_hook(user, of("data: 1"), data):
                pass
        else:
            await mirror.async_post_call_success_hook(data, user, None)
        if way not in ("failure", "stop"):
            await log(mirror, logged)
    while mirror._deciding:
        await asyncio.gather(*mirror._deciding)
    mirror.shutdown()
    (only,) = [span for span in destination.spans if span.name.startswith("gateway/")]
    assert only.context is not None


async def test_who_asks_for_the_companion_is_told(mirror: LiteLLMProxyMirror):
    """A probe is answered with a response header, as by the middleware; other requests get no such header."""
    hook = mirror.async_post_call_response_headers_hook
    assert await hook({}, None, None, {"traceparent": TRACEPARENT}) is None
    assert await hook({}, None, None, None) is None
    told = await hook({}, None, None, {"traceparent": TRACEPARENT, "agent-gateway-probe": "1"})
    assert told is not None
    assert json.loads(told["agent-gateway-companion"])["traceparent"] == TRACEPARENT
