"""Helpers of the LangChain handler's tests: a chat model on any HTTP stack, autolog, and each call's span."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlflow
import pytest

from tests.support.client import GATEWAY, STACKS, MemoryExporter, Wire, named_by_otel

pytest.importorskip("langchain_core")

import mlflow.langchain
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from agent_gateway_client import wrap_httpx
from agent_gateway_client.langchain import GatewayCallbackHandler

STACK = STACKS[0]

DEADLINE_S = 60.0
"""How long a test waits for something that takes less than a second on an idle machine."""

AUTOLOG = ["off", "on", "inline"]
"""mlflow.langchain.autolog(): off, on, and on with run_tracer_inline=True."""


@pytest.fixture(name="autolog", params=AUTOLOG)
def each_autolog(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with autolog off, on and inline; returns the setting."""
    if request.param != "off":
        pytest.importorskip("langchain", reason="mlflow.langchain.autolog() needs the package langchain")
        mlflow.langchain.autolog(run_tracer_inline=request.param == "inline", silent=True)
    yield request.param
    mlflow.langchain.autolog(disable=True)


with_autolog = pytest.mark.parametrize("autolog", ["on"], indirect=True)
"""For tests that do not depend on autolog's setting: they run once, with autolog on."""


@pytest.fixture(name="handler")
def open_handler() -> Iterator[GatewayCallbackHandler]:
    """A handler for the tests' gateway."""
    with GatewayCallbackHandler(GATEWAY) as handler:
        yield handler


class HttpModel(BaseChatModel):
    """A chat model that sends ``GET <base_url>/<prompt>`` to a server, and answers with the prompt.

    Attributes:
        around: Returns a context manager around the request, such as a span that a model's code opens.
    """

    client: Any = None
    async_client: Any = None
    base_url: str = GATEWAY
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def _llm_type(self) -> str:
        return "http"

    def _ask(self, messages: list[BaseMessage]) -> str:
        with self.around():
            self.client.get(f"{self.base_url}/{messages[-1].text}").raise_for_status()
        return str(messages[-1].text)

    async def _aask(self, messages: list[BaseMessage]) -> str:
        with self.around():
            (await self.async_client.get(f"{self.base_url}/{messages[-1].text}")).raise_for_status()
        return str(messages[-1].text)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return _result(self._ask(messages))

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return _result(await self._aask(messages))

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        yield from _chunks(self._ask(messages))

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(await self._aask(messages)):
            yield chunk


def _result(text: str) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])


def _chunks(text: str) -> list[ChatGenerationChunk]:
    return [ChatGenerationChunk(message=AIMessageChunk(character)) for character in text]


def http_model(wire: Wire, stack: Any = STACK, **options: Any) -> HttpModel:
    """Return a model whose sync and async requests go to this wire."""
    clients = {"client": wire.client(stack), "async_client": wire.client(stack, "AsyncClient")}
    return HttpModel(**{**clients, **options})


def messages(*words: str) -> list[list[BaseMessage]]:
    """Return one prompt per word."""
    return [[HumanMessage(word)] for word in words]


def model_spans(kind: str = "CHAT_MODEL") -> dict[str, str]:
    """Return, for each prompt, the traceparent of autolog's span of the model call."""
    found: dict[str, str] = {}
    for span in MemoryExporter.spans.get_finished_spans():
        if json.loads(span.attributes.get("mlflow.spanType", "null")) == kind:
            inputs = json.loads(span.attributes["mlflow.spanInputs"])
            # One chat prompt, several chat prompts, or a text prompt.
            last = inputs["messages"][-1] if isinstance(inputs, dict) else inputs[-1]
            last = last[-1] if isinstance(last, list) else last
            prompt = last["content"] if isinstance(last, dict) else last
            assert prompt not in found, f"two spans of the model for the prompt {prompt}"
            found[prompt] = named_by_otel(span)
    return found


def parents(wire: Wire) -> dict[str, list[str]]:
    """Return, for each sent prompt, the values of the request's ``traceparent`` headers."""
    words = [url.rpartition("/")[2] for url in wire.urls]
    assert len(words) == len(set(words)), f"a prompt was sent twice: {words}"
    return dict(zip(words, wire.sent(), strict=True))


def own_parents(words: list[str], outer: str, autolog: str) -> dict[str, list[str]]:
    """Return the expected traceparent of each prompt's request: its own span's, or the outer one's without autolog."""
    spans = model_spans()
    assert sorted(spans) == ([] if autolog == "off" else sorted(words))
    return {word: [spans.get(word, outer)] for word in words}


def plain_parent(wire: Wire) -> str:
    """Send a request that is not a model call to the same gateway, and return its traceparent."""
    wrap_httpx(wire.client(STACK), [GATEWAY]).get(f"{GATEWAY}/plain{len(wire.requests)}")
    (value,) = wire.sent()[-1]
    return value


class AsyncWire(Wire):
    """A wire that answers an async client's request when ``wait()`` returns."""

    def __init__(self, wait: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self._wait = wait

    def client(self, stack: Any, kind: str = "Client", **options: Any) -> Any:
        if kind == "Client":
            return super().client(stack, kind, **options)
        return stack.AsyncClient(transport=stack.MockTransport(self._answer_later), **options)

    async def _answer_later(self, request: Any) -> Any:
        answer = self(request)
        await self._wait()
        return answer
