"""openai.py: every HTTP request of OpenAI's clients, with openai 2.x (httpx) and 3.x (httpx2)."""

import inspect
from typing import Any

import mlflow
import openai
import pytest

from agent_gateway_client import trace_headers, unwrap, wrap_openai
from agent_gateway_client.errors import ConfigurationError
from tests.support.client import (
    OTHER,
    TRACEPARENT,
    Wire,
    isolated,  # noqa: F401
    named_by,
    redirects,
    value_of,
)
from tests.support.openai import CALLS, CLIENTS, STACK, answer, make_client

each_client = pytest.mark.parametrize("kind", CLIENTS)


async def chat(client: Any, **options: Any) -> Any:
    return await CALLS["chat"](client, **options)


@each_client
@pytest.mark.parametrize("name", CALLS)
async def test_every_call_names_the_span_it_is_made_under(kind: str, name: str):
    """Each request of each method carries the active span's traceparent, once, and its answer is read."""
    wire = Wire(answer)
    client = wrap_openai(make_client(kind, wire))
    with mlflow.start_span("agent") as span:
        await CALLS[name](client)
    assert len(wire.requests) == (2 if name == "files, page by page" else 1)
    assert wire.sent() == [[named_by(span)]] * len(wire.requests)


@pytest.mark.parametrize("kind", ["AzureOpenAI", "AsyncAzureOpenAI"])
@pytest.mark.parametrize(
    "name",
    ["chat", "embeddings", "images, edit", "audio, transcription", "responses", "files, page by page", "batches"],
)
async def test_an_azure_client_of_one_deployment_is_covered(kind: str, name: str):
    """With azure_deployment some calls go below the deployment and others beside it; all carry it."""
    wire = Wire(answer)
    client = wrap_openai(make_client(kind, wire, azure_deployment="gpt"))
    with mlflow.start_span("agent") as span:
        await CALLS[name](client)
    assert wire.sent() == [[named_by(span)]] * len(wire.requests)


@each_client
async def test_without_a_span_the_request_is_the_clients_own(kind: str):
    """With no span active a wrapped client sends what an unwrapped one sends, to the header."""
    wire, plain = Wire(answer), Wire(answer)
    await chat(wrap_openai(make_client(kind, wire)))
    await chat(make_client(kind, plain))
    assert wire.requests == plain.requests


@each_client
@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_each_attempt_carries_it(kind: str, status: int):
    """The SDK's retries are requests of their own: each carries the header, once."""
    statuses = [status, status]
    wire = Wire(
        lambda request: (
            {"status_code": statuses.pop(), "headers": {"retry-after-ms": "1"}} if statuses else answer(request)
        )
    )
    client = wrap_openai(make_client(kind, wire, max_retries=2))
    with mlflow.start_span("agent") as span:
        await chat(client)
    assert wire.sent() == [[named_by(span)]] * 3


@each_client
async def test_a_call_that_fails_raises_the_sdks_own_error(kind: str):
    """The gateway's error reaches the user as it did before, and the request had the header."""
    wire = Wire(lambda request: {"status_code": 400, "json": {"error": {"message": "no"}}})
    client = wrap_openai(make_client(kind, wire))
    with mlflow.start_span("agent") as span, pytest.raises(openai.BadRequestError):
        await chat(client)
    assert wire.sent() == [[named_by(span)]]


@each_client
async def test_a_redirect_away_does_not_take_it_along(kind: str):
    """Where the gateway redirects to another host, the SDK follows and our header does not."""
    probe = Wire(answer)
    await chat(make_client(kind, probe))
    (url,) = probe.urls
    wire = Wire(lambda request: redirects({url: OTHER})(request) or answer(request))
    with mlflow.start_span("agent") as span:
        await chat(wrap_openai(make_client(kind, wire)))
    assert (wire.urls, wire.sent()) == ([url, OTHER], [[named_by(span)], []])


@each_client
@pytest.mark.parametrize("how", ["with_options", "copy"])
@pytest.mark.parametrize("wrapped", ["before", "after"])
async def test_copies_keep_it(kind: str, how: str, wrapped: str):
    """What with_options() and copy() return sends it too, made before the wrap or after."""
    wire = Wire(answer)
    client = make_client(kind, wire)
    if wrapped == "before":
        wrap_openai(client)
    copied = getattr(client, how)(timeout=5, max_retries=1, default_headers={"x-team": "a"})
    if wrapped == "after":
        wrap_openai(client)
    with mlflow.start_span("agent") as span:
        await chat(copied)
        await chat(copied.with_options(timeout=6))
        await chat(client)
    assert wire.sent() == [[named_by(span)]] * 3
    assert wire.sent("x-team") == [["a"], ["a"], []]


@each_client
async def test_a_copy_with_another_base_url_sends_nothing_there(kind: str):
    """A copy that talks to somebody else sends no header, and the client that it was made of still does."""
    wire = Wire(answer)
    client = wrap_openai(make_client(kind, wire))
    elsewhere = client.with_options(base_url="https://api.openai.com/v1")
    with mlflow.start_span("agent") as span:
        await chat(elsewhere)
        await chat(client)
    assert wire.sent() == [[], [named_by(span)]]
    assert wire.urls[0].startswith("https://api.openai.com/v1/")


@each_client
async def test_an_absolute_url_to_somebody_else_sends_nothing(kind: str):
    """The SDK's raw get() takes any URL; only one below the gateway carries the header."""
    wire = Wire(answer)
    client = wrap_openai(make_client(kind, wire))
    with mlflow.start_span("agent") as span:
        await value_of(client.get(OTHER, cast_to=object))
        await value_of(client.get("/anything", cast_to=object))
    assert wire.sent() == [[], [named_by(span)]]


@each_client
@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT"])
@pytest.mark.parametrize("where", ["extra_headers", "default_headers"])
async def test_the_users_own_traceparent_stays(kind: str, name: str, where: str):
    """A traceparent in extra_headers or default_headers, in any case, is the only one on the wire."""
    wire = Wire(answer)
    own = {name: TRACEPARENT}
    client = wrap_openai(make_client(kind, wire, **({where: own} if where == "default_headers" else {})))
    with mlflow.start_span("agent"):
        await chat(client, **({where: own} if where == "extra_headers" else {}))
    assert wire.sent() == [[TRACEPARENT]]


@each_client
async def test_trace_headers_by_hand_are_the_same(kind: str):
    """trace_headers() in extra_headers of a wrapped client gives one header, that of the span."""
    wire = Wire(answer)
    client = wrap_openai(make_client(kind, wire))
    with mlflow.start_span("agent") as span:
        await chat(client, extra_headers=trace_headers(client.base_url, [str(client.base_url)]))
    assert wire.sent() == [[named_by(span)]]


@each_client
async def test_wrapping_twice_is_once_and_unwrap_undoes_it(kind: str):
    """wrap_openai() returns the same object, twice is once, and unwrap() leaves the SDK's own hooks."""
    wire = Wire(answer)
    client = make_client(kind, wire)
    # openai 3.x has a hook of its own on Azure's clients.
    hooks = client._client.event_hooks
    assert wrap_openai(wrap_openai(client)) is client
    assert len(client._client.event_hooks["request"]) == len(hooks["request"]) + 1
    with mlflow.start_span("agent") as span:
        await chat(client)
        assert unwrap(client) is client
        await chat(client)
    assert wire.sent() == [[named_by(span)], []]
    assert client._client.event_hooks == hooks


@each_client
async def test_two_clients_over_one_http_client_keep_to_their_gateways(kind: str):
    """An HTTP client that a gateway's and a vendor's client share sends the header to the gateway only."""
    wire = Wire(answer)
    gateway = wrap_openai(make_client(kind, wire))
    vendor = getattr(openai, kind.replace("Azure", ""))(
        api_key="key", base_url="https://api.openai.com/v1", http_client=gateway._client
    )
    with mlflow.start_span("agent") as span:
        await chat(vendor)
        await chat(gateway)
    assert wire.sent() == [[], [named_by(span)]]


@each_client
async def test_a_vendors_api_is_refused_unless_it_is_named(kind: str):
    """OpenAI's or Azure's own endpoint is an error that says what to do; gateways=[…] decides otherwise."""
    azure = {"azure_endpoint": "https://mine.openai.azure.com"}
    options = azure if "Azure" in kind else {"base_url": "https://api.openai.com/v1"}
    wire = Wire(answer)
    client = make_client(kind, wire, **options)
    with pytest.raises(ConfigurationError, match=r"vendor's public API.*Set base_url.*gateways=\["):
        wrap_openai(client)
    with mlflow.start_span("agent") as span:
        await chat(client)
        wrap_openai(client, gateways=[str(client.base_url)])
        await chat(client)
    assert wire.sent() == [[], [named_by(span)]]


def test_the_sdks_default_endpoints_are_refused():
    """A client made without a base_url, or with openai 3.x's data_residency, talks to OpenAI and is refused."""
    made = [openai.OpenAI(api_key="key"), openai.AsyncOpenAI(api_key="key")]
    if "data_residency" in inspect.signature(openai.OpenAI.__init__).parameters:
        made.append(openai.OpenAI(api_key="key", data_residency="eu"))
    for client in made:
        with pytest.raises(ConfigurationError, match=r"api\.openai\.com, a model vendor's public API"):
            wrap_openai(client)


@each_client
async def test_named_gateways_replace_the_base_url(kind: str):
    """With gateways=[…] the client's own base_url counts only if it is among them."""
    wire = Wire(answer)
    client = wrap_openai(make_client(kind, wire), gateways=["http://elsewhere.test"])
    with mlflow.start_span("agent"):
        await chat(client)
    assert wire.sent() == [[]]
    for bad, message in (
        ([], "empty"),
        (["localhost:5000"], "no scheme"),
        ("http://gw.test", "list of URLs"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            wrap_openai(client, gateways=bad)


@pytest.mark.parametrize("gateways", [None, ["http://gw.test"]])
@pytest.mark.parametrize(
    "what",
    ["None", "str", "module", "OpenAI", "AsyncAzureOpenAI", "http client", "http class", "resource", "dict"],
)
def test_what_is_no_openai_client_is_one_clear_error(what: str, gateways: list[str] | None):
    """Anything but an instance of one of the four is refused in one sentence on what to give instead."""
    wrong: dict[str, tuple[Any, str]] = {
        "None": (None, "NoneType"),
        "str": ("http://gw.test", "str"),
        "module": (openai, "module"),
        "OpenAI": (openai.OpenAI, "OpenAI"),
        "AsyncAzureOpenAI": (openai.AsyncAzureOpenAI, "AsyncAzureOpenAI"),
        "http client": (STACK.Client(base_url="http://gw.test"), "Client"),
        "http class": (STACK.AsyncClient, "AsyncClient"),
        "resource": (make_client("OpenAI", Wire()).chat.completions, "Completions"),
        "dict": ({}, "dict"),
    }
    value, name = wrong[what]
    message = rf"^wrap_openai\(\) takes an OpenAI client like OpenAI\(base_url=.*\), not .*{name}.*wrap_httpx\(\)"
    with pytest.raises(ConfigurationError, match=message):
        wrap_openai(value, gateways=gateways)


@pytest.mark.usefixtures("guards_hold")
def test_an_sdk_that_moved_its_http_client_is_one_warning(caplog: pytest.LogCaptureFixture):
    """Should the SDK keep its HTTP client elsewhere, wrap_openai() says so once, with the version, and goes on."""
    client = make_client("OpenAI", Wire(answer))
    http_client = client._client
    client._client = object()
    try:
        assert wrap_openai(wrap_openai(client)) is client
        assert unwrap(client) is client
    finally:
        client._client = http_client
    (message,) = caplog.messages
    assert f"openai {openai.__version__}" in message


@each_client
@pytest.mark.parametrize("how", ["with_options", "copy"])
async def test_a_copy_with_another_http_client_keeps_it(kind: str, how: str):
    """A copy over an HTTP client that nobody wrapped sends it too, and so does a copy of the copy."""
    first, second, third = Wire(answer), Wire(answer), Wire(answer)
    client = wrap_openai(make_client(kind, first))
    copied = getattr(client, how)(http_client=make_client(kind, second)._client)
    again = copied.with_options(timeout=5).copy(http_client=make_client(kind, third)._client)
    with mlflow.start_span("agent") as span:
        for one in (client, copied, again):
            await chat(one)
        unwrap(client)
        for one in (client, copied, again, client.with_options(http_client=copied._client)):
            await chat(one)
    assert first.sent() == [[named_by(span)], []]
    assert second.sent() == [[named_by(span)], [], []]
    assert third.sent() == [[named_by(span)], []]
    assert "copy" not in vars(client)


@each_client
async def test_clients_that_share_an_http_client_are_unwrapped_separately(kind: str):
    """unwrap() takes away what wrapping that client has added, and nothing of another client."""
    wire = Wire(answer)
    first = make_client(kind, wire)
    hooks = first._client.event_hooks
    second, never = (make_client(kind, wire, http_client=first._client) for _ in range(2))
    wrap_openai(first)
    wrap_openai(second)
    with mlflow.start_span("agent") as span:
        for one, expected in ((never, 1), (first._client, 1), (first, 1), (first, 1), (second, 0)):
            unwrap(one)
            await chat(second)
            assert wire.sent()[-1] == [named_by(span)] * expected
    assert first._client.event_hooks == hooks
    assert "_send_single_request" not in vars(first._client)
