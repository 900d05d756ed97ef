"""OpenAI SDK's column of the matrix: wrap_openai(), and the Agents SDK on top of it; see tests/support/matrix.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlflow.openai
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI, OpenAI

from agent_gateway_client import wrap_openai
from tests.support.matrix import MINI, Cell, run_column

AUTOLOG = ("off", "on")

FALLBACK = [("openai/gpt-4o-fail-503", "ERROR"), MINI]
EMBEDDINGS = [("openai/text-embedding-3-small", "OK")]
ASK: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "one two three"}]}
STREAM: dict[str, Any] = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
RESPOND: dict[str, Any] = {"model": "responses", "input": "one two three"}
EMBED: dict[str, Any] = {"model": "embeddings", "input": "one two three"}


class Clients(NamedTuple):
    sync: OpenAI
    asyncio: AsyncOpenAI


def set_up(gateway_url: str, autolog: str) -> Clients:
    set_tracing_disabled(autolog == "off")
    if autolog == "on":
        mlflow.openai.autolog(silent=True)
    options: dict[str, Any] = {"base_url": f"{gateway_url}/openai/v1", "api_key": "none", "max_retries": 0}
    return Clients(wrap_openai(OpenAI(**options)), wrap_openai(AsyncOpenAI(**options)))


def read(stream: Any) -> None:
    for _ in stream:
        pass


async def aread(stream: Any) -> None:
    async for _ in stream:
        pass


def sync_stream_helper(clients: Clients) -> None:
    with clients.sync.chat.completions.stream(**ASK, stream_options={"include_usage": True}) as stream:
        read(stream)


def raw(clients: Clients) -> None:
    clients.sync.chat.completions.with_raw_response.create(**ASK).parse()


async def async_stream(clients: Clients) -> None:
    await aread(await clients.asyncio.chat.completions.create(**STREAM))


async def async_responses_stream(clients: Clients) -> None:
    await aread(await clients.asyncio.responses.create(**RESPOND, stream=True))


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def agent(clients: Clients, kind: str, **options: Any) -> Agent:
    model: Any = OpenAIChatCompletionsModel if kind == "chat" else OpenAIResponsesModel
    return Agent(name="traveller", model=model(kind, openai_client=clients.asyncio), **options)


async def run_streamed(clients: Clients, kind: str) -> None:
    await aread(Runner.run_streamed(agent(clients, kind), "one two three").stream_events())


def cell(mode: str, run: Callable[[Clients], Any], **options: Any) -> Cell:
    return Cell("OpenAI", mode, run, **options)


def agents(mode: str, run: Callable[[Clients], Any], **options: Any) -> Cell:
    return Cell("OpenAI Agents", mode, run, nested=True, **options)


CELLS = [
    cell("chat", lambda c: c.sync.chat.completions.create(**ASK)),
    cell("chat stream", lambda c: read(c.sync.chat.completions.create(**STREAM))),
    cell("chat.completions.stream()", sync_stream_helper),
    cell("chat async", lambda c: c.asyncio.chat.completions.create(**ASK)),
    cell("chat async stream", async_stream),
    cell("with_options()", lambda c: c.sync.with_options(timeout=60).chat.completions.create(**ASK)),
    cell("with_raw_response", raw),
    cell("fallback", lambda c: c.sync.chat.completions.create(**{**ASK, "model": "fallback"}), attempts=FALLBACK),
    cell("responses", lambda c: c.sync.responses.create(**RESPOND)),
    cell("responses stream", lambda c: read(c.sync.responses.create(**RESPOND, stream=True))),
    cell("responses async", lambda c: c.asyncio.responses.create(**RESPOND)),
    cell("responses async stream", async_responses_stream),
    cell("embeddings", lambda c: c.sync.embeddings.create(**EMBED), attempts=EMBEDDINGS),
    cell("embeddings async", lambda c: c.asyncio.embeddings.create(**EMBED), attempts=EMBEDDINGS),
    agents("run, responses", lambda c: Runner.run(agent(c, "responses"), "one two three")),
    agents("run, chat", lambda c: Runner.run(agent(c, "chat"), "one two three")),
    agents("run with a tool", lambda c: Runner.run(agent(c, "chat", tools=[weather]), "one two three"), calls=2),
    agents("run_streamed, responses", lambda c: run_streamed(c, "responses"), leaves_early=True),
    agents("run_streamed, chat", lambda c: run_streamed(c, "chat")),
]

if __name__ == "__main__":
    run_column(CELLS, set_up)
