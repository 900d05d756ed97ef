"""langchain.py and text models (``BaseLLM``), which get several prompts at once."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import mlflow
import pytest

from tests.support.client import GATEWAY, Wire, isolated, named_by, value_of  # noqa: F401

pytest.importorskip("langchain_core")

from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from agent_gateway_client.langchain import GatewayCallbackHandler
from tests.support.langchain import STACK, each_autolog, model_spans, open_handler, plain_parent, with_autolog  # noqa: F401


class TextModel(BaseLLM):
    """A text model that sends one request for all of its prompts: ``GET <gateway>/<prompt>+<prompt>``."""

    client: Any = None
    async_client: Any = None

    @property
    def _llm_type(self) -> str:
        return "text"

    def _generate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        self.client.get(f"{GATEWAY}/{'+'.join(prompts)}").raise_for_status()
        return LLMResult(generations=[[Generation(text=prompt)] for prompt in prompts])

    async def _agenerate(self, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        (await self.async_client.get(f"{GATEWAY}/{'+'.join(prompts)}")).raise_for_status()
        return LLMResult(generations=[[Generation(text=prompt)] for prompt in prompts])

    def _stream(self, prompt: str, *args: Any, **kwargs: Any) -> Iterator[GenerationChunk]:
        self._generate([prompt])
        for character in prompt:
            yield GenerationChunk(text=character)

    async def _astream(self, prompt: str, *args: Any, **kwargs: Any) -> AsyncIterator[GenerationChunk]:
        await self._agenerate([prompt])
        for character in prompt:
            yield GenerationChunk(text=character)


async def read(parts: Any) -> list[Any]:
    return [part async for part in parts]


CALLS = {
    "invoke": (["a"], lambda model, config: model.invoke("a", config)),
    "ainvoke": (["a"], lambda model, config: model.ainvoke("a", config)),
    "stream": (["abc"], lambda model, config: list(model.stream("abc", config))),
    "astream": (["abc"], lambda model, config: read(model.astream("abc", config))),
    "batch": (["a", "b"], lambda model, config: model.batch(["a", "b"], config)),
    "abatch": (["a", "b"], lambda model, config: model.abatch(["a", "b"], config)),
    "generate": (["a", "b"], lambda model, config: model.generate(["a", "b"], **config)),
    "agenerate": (["a", "b"], lambda model, config: model.agenerate(["a", "b"], **config)),
}

each_call = pytest.mark.parametrize("call", CALLS)


def text_model(wire: Wire) -> TextModel:
    return TextModel(client=wire.client(STACK), async_client=wire.client(STACK, "AsyncClient"))


@each_call
async def test_the_first_prompts_span_is_named(call: str, autolog: str, handler: GatewayCallbackHandler):
    """The only request for several prompts has the first one's span, to which LangChain assigns all tokens."""
    wire = Wire()
    words, run = CALLS[call]
    with mlflow.start_span("agent") as span:
        await value_of(run(text_model(wire), {"callbacks": [handler]}))
        assert plain_parent(wire) == named_by(span)
    spans = model_spans("LLM")
    assert sorted(spans) == ([] if autolog == "off" else words)
    assert wire.sent()[0] == [spans.get(words[0], named_by(span))]


@with_autolog
@each_call
async def test_without_a_handler_nothing_is_sent(call: str, autolog: str, handler: GatewayCallbackHandler):
    """A handler that is not passed to the run changes nothing."""
    wire = Wire()
    with mlflow.start_span("agent"):
        await value_of(CALLS[call][1](text_model(wire), {}))
    assert wire.sent() == [[]]


@each_call
async def test_after_an_error(call: str, autolog: str, handler: GatewayCallbackHandler):
    """After an error the outer span is the parent."""
    wire = Wire(lambda request: None if "plain" in request.url.path else 500)
    with mlflow.start_span("agent") as span:
        with pytest.raises(STACK.HTTPStatusError):
            await value_of(CALLS[call][1](text_model(wire), {"callbacks": [handler]}))
        assert plain_parent(wire) == named_by(span)
