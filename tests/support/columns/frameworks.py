"""The matrix column of frameworks that create their own HTTP clients: instrument(); see tests/support/matrix.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow

from agent_gateway_client import instrument
from tests.support.matrix import Cell, run_column

# The frameworks are imported where the cells run, and not in the processes that only list them.
if TYPE_CHECKING:
    import dspy
    from anthropic import Anthropic, AsyncAnthropic
    from google import genai
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike
    from pydantic_ai import Agent

AUTOLOG = ("off", "on")

CLAUDE = [("anthropic/claude-3-5-haiku-20241022", "OK")]
GEMINI = [("databricks/gemini-2.0-flash", "OK")]
PROMPT = "one two three"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
ASK_CLAUDE: dict[str, Any] = {"model": "claude", "max_tokens": 99, "messages": MESSAGES}
ASK_GEMINI: dict[str, Any] = {"model": "gemini", "contents": PROMPT}


class Frameworks(NamedTuple):
    anthropic: Anthropic
    async_anthropic: AsyncAnthropic
    gemini: genai.Client
    llama_index: OpenAILike
    pydantic_ai: Callable[[], Agent]
    dspy: dspy.LM


def set_up(gateway_url: str, autolog: str) -> Frameworks:
    import dspy
    from anthropic import Anthropic, AsyncAnthropic
    from google import genai
    from llama_index.llms.openai_like import OpenAILike
    from openai import AsyncOpenAI
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    if autolog == "on":
        for flavor in (mlflow.anthropic, mlflow.gemini, mlflow.llama_index, mlflow.pydantic_ai, mlflow.dspy):
            flavor.autolog(silent=True)
    instrument(gateway_url)
    openai_url = f"{gateway_url}/openai/v1"
    claude: dict[str, Any] = {"base_url": f"{gateway_url}/anthropic", "api_key": "none", "max_retries": 0}
    openai: dict[str, Any] = {"base_url": openai_url, "api_key": "none", "max_retries": 0}
    return Frameworks(
        Anthropic(**claude),
        AsyncAnthropic(**claude),
        genai.Client(api_key="none", http_options={"base_url": f"{gateway_url}/gemini", "api_version": "v1beta"}),
        OpenAILike("chat", api_base=openai_url, api_key="none", is_chat_model=True, is_function_calling_model=True),
        lambda: Agent(OpenAIChatModel("chat", provider=OpenAIProvider(openai_client=AsyncOpenAI(**openai)))),
        dspy.LM("openai/chat", api_base=openai_url, api_key="none", cache=False, engine="litellm"),
    )


def read(stream: Any) -> None:
    for _ in stream:
        pass


async def aread(stream: Any) -> None:
    async for _ in stream:
        pass


def messages_stream(given: Frameworks) -> None:
    with given.anthropic.messages.stream(**ASK_CLAUDE) as stream:
        read(stream)


async def async_messages_stream(given: Frameworks) -> None:
    async with given.async_anthropic.messages.stream(**ASK_CLAUDE) as stream:
        await aread(stream)


async def async_gemini_stream(given: Frameworks) -> None:
    await aread(await given.gemini.aio.models.generate_content_stream(**ASK_GEMINI))


def chat() -> list[ChatMessage]:
    from llama_index.core.llms import ChatMessage

    return [ChatMessage(content=PROMPT)]


async def llama_index_astream(given: Frameworks) -> None:
    await aread(await given.llama_index.astream_chat(chat()))


def traveller(given: Frameworks) -> Agent:
    agent = given.pydantic_ai()

    @agent.tool_plain
    def weather(city: str) -> str:
        return f"sunny in {city}"

    return agent


async def pydantic_ai_stream(given: Frameworks) -> None:
    async with given.pydantic_ai().run_stream(PROMPT) as result:
        await aread(result.stream_text())


def anthropic(mode: str, run: Callable[[Frameworks], Any], **options: Any) -> Cell:
    return Cell("Anthropic", mode, run, attempts=CLAUDE, **options)


def gemini(mode: str, run: Callable[[Frameworks], Any], **options: Any) -> Cell:
    return Cell("google-genai", mode, run, attempts=GEMINI, nested=True, **options)


def llama_index(mode: str, run: Callable[[Frameworks], Any], **options: Any) -> Cell:
    return Cell("LlamaIndex", mode, run, nested=True, **options)


CELLS = [
    anthropic("create", lambda g: g.anthropic.messages.create(**ASK_CLAUDE)),
    anthropic("create async", lambda g: g.async_anthropic.messages.create(**ASK_CLAUDE)),
    anthropic("stream()", messages_stream, callers=()),
    anthropic("stream() async", async_messages_stream, callers=()),
    gemini("generate_content", lambda g: g.gemini.models.generate_content(**ASK_GEMINI)),
    gemini("generate_content async", lambda g: g.gemini.aio.models.generate_content(**ASK_GEMINI)),
    gemini("stream", lambda g: read(g.gemini.models.generate_content_stream(**ASK_GEMINI)), callers=()),
    gemini("stream async", async_gemini_stream, callers=()),
    gemini("chats", lambda g: g.gemini.chats.create(model="gemini").send_message(PROMPT)),
    llama_index("complete", lambda g: g.llama_index.complete(PROMPT)),
    llama_index("chat", lambda g: g.llama_index.chat(chat())),
    llama_index("achat", lambda g: g.llama_index.achat(chat())),
    llama_index("stream_chat", lambda g: read(g.llama_index.stream_chat(chat())), callers=(), beside=True),
    llama_index("astream_chat", llama_index_astream, callers=()),
    Cell("PydanticAI", "run_sync", lambda g: g.pydantic_ai().run_sync(PROMPT)),
    Cell("PydanticAI", "run", lambda g: g.pydantic_ai().run(PROMPT)),
    Cell("PydanticAI", "run with a tool", lambda g: traveller(g).run(PROMPT), calls=2),
    Cell("PydanticAI", "run_stream", pydantic_ai_stream, callers=("AGENT",)),
    Cell("DSPy", "LM()", lambda g: g.dspy(PROMPT)),
    Cell("DSPy", "LM.acall()", lambda g: g.dspy.acall(PROMPT)),
]

if __name__ == "__main__":
    run_column(CELLS, set_up)
