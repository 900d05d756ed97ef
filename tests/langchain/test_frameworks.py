"""langchain.py with common models and agents: ChatOpenAI, ChatAnthropic, LangGraph; and aiohttp."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import mlflow
import pytest

from tests.support.client import MemoryExporter, isolated, named_by, named_by_otel  # noqa: F401

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")
pytest.importorskip("langchain_anthropic")
pytest.importorskip("langgraph")
pytest.importorskip("aiohttp")
pytest.importorskip("uvicorn")

import aiohttp
from langchain_openai import OpenAIEmbeddings

from agent_gateway_client.demo.provider import Provider
from agent_gateway_client.langchain import GatewayCallbackHandler
from tests.support.columns.langchain_modes import MODES, Mode, model_for, openai_model, run
from tests.support.langchain import AUTOLOG, HttpModel, each_autolog, messages, model_spans, with_autolog  # noqa: F401

# langchain-openai warns about streams in version 3 of stream_events, which is beta.
pytestmark = pytest.mark.filterwarnings("ignore:Unexpected type for token usage:UserWarning")


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop of all async clients, which LangChain shares between models."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture(scope="module")
def server(loop: asyncio.AbstractEventLoop) -> Iterator[Provider]:
    with Provider() as provider:
        yield provider
        close_clients(provider.url, loop)


@pytest.fixture
def provider(server: Provider) -> Provider:
    """A model provider, used as a gateway or as another host."""
    server.clear()
    return server


@pytest.fixture(scope="module")
def redirecting_server(server: Provider, loop: asyncio.AbstractEventLoop) -> Iterator[tuple[str, list[list[str]]]]:
    sent: list[list[str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent.append(self.headers.get_all("traceparent") or [])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(307)
            self.send_header("Location", f"{server.url}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{http.server_port}"
        yield url, sent
        close_clients(url, loop)
        http.shutdown()
        thread.join()


@pytest.fixture
def redirecting(redirecting_server: tuple[str, list[list[str]]]) -> tuple[str, list[list[str]]]:
    """A gateway that redirects everything to the provider: its URL, and the traceparents that it received."""
    redirecting_server[1].clear()
    return redirecting_server


def close_clients(url: str, loop: asyncio.AbstractEventLoop) -> None:
    """Close the HTTP clients that LangChain keeps for all models with a URL."""
    openai_client: Any = openai_model(f"{url}/v1")
    anthropic: Any = model_for("ChatAnthropic", "", url)
    openai_client.root_client.close()
    anthropic._client.close()
    loop.run_until_complete(openai_client.root_async_client.close())
    loop.run_until_complete(anthropic._async_client.close())


def model_on(url: str, mode: Mode) -> Any:
    return model_for(mode.framework, f"{url}/v1", url)


def prompt_of(body: dict[str, Any]) -> str:
    """Return the last message of a request, in each API's format."""
    last = (body.get("messages") or body.get("input"))[-1]
    content = last.get("content") or last.get("output")
    return str(content if isinstance(content, str) else content[0].get("text") or content[0].get("content"))


SAME_CALLS = ("responses API", "ChatAnthropic")
"""They are called like ChatOpenAI, but send requests differently: one test is enough."""

MODES_AND_AUTOLOG = [
    (mode, autolog) for mode in MODES for autolog in AUTOLOG if autolog == "on" or mode.framework not in SAME_CALLS
]


@pytest.mark.parametrize(("mode", "autolog"), MODES_AND_AUTOLOG, indirect=["autolog"], ids=str)
def test_every_way_to_call_a_model(mode: Mode, autolog: str, provider: Provider, loop: asyncio.AbstractEventLoop):
    """Each request has one header with the span of its own call: the one with its prompt."""
    with GatewayCallbackHandler(provider.url) as handler, mlflow.start_span("agent") as span:
        run(mode, model_on(provider.url, mode), {"callbacks": [handler]}, loop)
    sent = [(prompt_of(request.body), request.header("traceparent")) for request in provider.requests]
    assert len(sent) == mode.calls
    if autolog == "off":
        assert [header for _, header in sent] == [[named_by(span)]] * mode.calls
        return
    inputs = {
        named_by_otel(span): span.attributes["mlflow.spanInputs"]
        for span in MemoryExporter.spans.get_finished_spans()
        if json.loads(span.attributes["mlflow.spanType"]) == "CHAT_MODEL"
    }
    assert sorted(header for _, (header,) in sent) == sorted(inputs)
    for prompt, (header,) in sent:
        assert prompt in inputs[header]


FEW = [mode for mode in MODES if mode.name in ("invoke", "ainvoke", "stream", "astream") or "agent" in mode.name]


@with_autolog
@pytest.mark.parametrize("mode", FEW, ids=str)
def test_a_redirect_to_another_host_loses_the_header(
    mode: Mode, autolog: str, provider: Provider, redirecting: Any, loop: asyncio.AbstractEventLoop
):
    """A gateway that redirects to another host gets the header, and that host does not."""
    url, sent = redirecting
    with GatewayCallbackHandler(url) as handler, mlflow.start_span("agent"):
        run(mode, model_on(url, mode), {"callbacks": [handler]}, loop)
    assert [len(values) for values in sent] == [1] * mode.calls
    assert [request.header("traceparent") for request in provider.requests] == [[]] * mode.calls


@with_autolog
@pytest.mark.parametrize("mode", FEW, ids=str)
def test_another_host_gets_nothing(mode: Mode, autolog: str, provider: Provider, loop: asyncio.AbstractEventLoop):
    """A model in the same graph that calls another host sends it nothing."""
    with GatewayCallbackHandler("http://gw.test") as handler, mlflow.start_span("agent"):
        run(mode, model_on(provider.url, mode), {"callbacks": [handler]}, loop)
    assert [request.header("traceparent") for request in provider.requests] == [[]] * mode.calls


def test_models_that_share_an_http_client(autolog: str, provider: Provider):
    """Of two models that share LangChain's HTTP client, only the one with the handler sends the header."""
    with GatewayCallbackHandler(provider.url) as handler, mlflow.start_span("agent"):
        with_handler = openai_model(f"{provider.url}/v1", callbacks=[handler])
        without = openai_model(f"{provider.url}/v1")
        assert with_handler.root_client._client is without.root_client._client
        for model in (with_handler, without, with_handler):
            model.invoke("hello")
    assert [len(request.header("traceparent")) for request in provider.requests] == [1, 0, 1]


async def test_aiohttp(autolog: str, provider: Provider):
    """A model that uses aiohttp works like one that uses httpx."""

    class AiohttpModel(HttpModel):
        async def _aask(self, given: list[Any]) -> str:
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": given[-1].text}]}
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{self.base_url}/v1/chat/completions", json=body),
            ):
                return str(given[-1].text)

    model = AiohttpModel(base_url=provider.url)
    with GatewayCallbackHandler(provider.url) as handler, mlflow.start_span("agent") as span:
        await model.agenerate(messages("a", "b"), callbacks=[handler])
        await model.ainvoke("c")
    found = {prompt_of(request.body): request.header("traceparent") for request in provider.requests}
    spans = model_spans()
    assert found == {"a": [spans.get("a", named_by(span))], "b": [spans.get("b", named_by(span))], "c": []}


def test_embeddings_have_no_callbacks(provider: Provider):
    """The handler does not cover embedding models; instrument() does."""
    from agent_gateway_client import instrument

    model = OpenAIEmbeddings(
        base_url=f"{provider.url}/v1", api_key="none", model="embeddings", check_embedding_ctx_length=False
    )
    with GatewayCallbackHandler(provider.url), mlflow.start_span("agent") as span:
        model.embed_query("a")
        with instrument(provider.url):
            model.embed_query("a")
    model.client._client.close()
    assert [request.header("traceparent") for request in provider.requests] == [[], [named_by(span)]]
