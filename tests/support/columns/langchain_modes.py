"""Ways to call a model through LangChain and LangGraph, for the unit tests and the end-to-end matrix.

Every prompt is a different word, so that its request can be recognized.
"""

import asyncio
import sys
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypedDict

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

with warnings.catch_warnings():
    # LangGraph warns that LangChain's agents should be used instead.
    warnings.simplefilter("ignore")
    from langgraph.prebuilt import ToolNode, create_react_agent


class Mode(NamedTuple):
    """A way to call a model.

    Attributes:
        framework: ``ChatOpenAI``, ``responses API``, ``ChatAnthropic`` or ``LangGraph``.
        name: The operation, in the framework's words.
        calls: The number of model calls that it makes.
        run: Runs it with a model and a run's config; may return an awaitable.
    """

    framework: str
    name: str
    calls: int
    run: Callable[[BaseChatModel, RunnableConfig], Any]

    def __str__(self) -> str:
        return f"{self.framework}: {self.name}"


MODES: list[Mode] = []


def mode(
    name: str, *frameworks: str, calls: int = 1, needs_task_context: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a way to call a model, for each of the frameworks.

    Args:
        name: See :class:`Mode`.
        *frameworks: See :class:`Mode`.
        calls: See :class:`Mode`.
        needs_task_context: Whether LangGraph must pass the run's callbacks to an async node. It does since Python 3.11,
            where a task can be given a context (https://docs.langchain.com/oss/python/langgraph/streaming).
    """

    def add(run: Callable[..., Any]) -> Callable[..., Any]:
        if sys.version_info >= (3, 11) or not needs_task_context:
            MODES.extend(Mode(framework, name, calls, run) for framework in frameworks)
        return run

    return add


CHAT = ("ChatOpenAI", "responses API", "ChatAnthropic")
CHAT_V3 = CHAT if hasattr(BaseChatModel, "_iter_v2_events") else ()
"""stream_events(version="v3") is newer than the lowest supported version."""


def openai_model(base_url: str, model: str = "chat", **options: Any) -> ChatOpenAI:
    """Return a model with OpenAI's API that uses LangChain's shared HTTP clients."""
    return ChatOpenAI(base_url=base_url, api_key="none", model=model, max_retries=0, **options)


def model_for(framework: str, openai_url: str, anthropic_url: str, claude: str = "claude") -> BaseChatModel:
    """Return the framework's model for a gateway with these base URLs."""
    if framework == "ChatAnthropic":
        return ChatAnthropic(base_url=anthropic_url, api_key="none", model=claude, max_retries=0)
    if framework == "responses API":
        return openai_model(openai_url, "responses", use_responses_api=True)
    return openai_model(openai_url)


def prompts(*words: str) -> list[list[HumanMessage]]:
    return [[HumanMessage(word)] for word in words]


def chain(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    return ChatPromptTemplate.from_messages([("user", "{word}")]) | model | StrOutputParser()


@mode("invoke", *CHAT)
def invoke(model: Any, config: RunnableConfig) -> None:
    model.invoke("alpha", config)


@mode("ainvoke", *CHAT)
async def ainvoke(model: Any, config: RunnableConfig) -> None:
    await model.ainvoke("bravo", config)


@mode("stream", *CHAT)
def stream(model: Any, config: RunnableConfig) -> None:
    assert len(list(model.stream("charlie", config))) > 1


@mode("astream", *CHAT)
async def astream(model: Any, config: RunnableConfig) -> None:
    assert len([chunk async for chunk in model.astream("delta", config)]) > 1


@mode("astream_events", *CHAT)
async def astream_events(model: Any, config: RunnableConfig) -> None:
    kinds = {event["event"] async for event in model.astream_events("echo", config, version="v2")}
    assert "on_chat_model_stream" in kinds


@mode("stream_events v3", *CHAT_V3)
def stream_events_v3(model: Any, config: RunnableConfig) -> None:
    with warnings.catch_warnings():
        # LangChain warns that this is beta.
        warnings.simplefilter("ignore")
        assert "foxtrot" in str(model.stream_events("foxtrot", config, version="v3").output.content)


@mode("astream_events v3", *CHAT_V3)
async def astream_events_v3(model: Any, config: RunnableConfig) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = await model.astream_events("golf", config, version="v3")
        assert "golf" in str((await stream).content)


@mode("batch", *CHAT, calls=3)
def batch(model: Any, config: RunnableConfig) -> None:
    model.batch(["hotel", "india", "juliett"], config)


@mode("abatch", *CHAT, calls=3)
async def abatch(model: Any, config: RunnableConfig) -> None:
    await model.abatch(["kilo", "lima", "mike"], config)


@mode("generate", *CHAT, calls=3)
def generate(model: Any, config: RunnableConfig) -> None:
    model.generate(prompts("november", "oscar", "papa"), callbacks=config.get("callbacks"))


@mode("agenerate", *CHAT, calls=3)
async def agenerate(model: Any, config: RunnableConfig) -> None:
    await model.agenerate(prompts("quebec", "romeo", "sierra"), callbacks=config.get("callbacks"))


@mode("chain.invoke", *CHAT)
def chain_invoke(model: Any, config: RunnableConfig) -> None:
    chain(model).invoke({"word": "tango"}, config)


@mode("chain.ainvoke", *CHAT)
async def chain_ainvoke(model: Any, config: RunnableConfig) -> None:
    await chain(model).ainvoke({"word": "uniform"}, config)


@mode("chain.stream", "ChatOpenAI")
def chain_stream(model: Any, config: RunnableConfig) -> None:
    assert len(list(chain(model).stream({"word": "victor"}, config))) > 1


@mode("chain.astream", "ChatOpenAI")
async def chain_astream(model: Any, config: RunnableConfig) -> None:
    assert len([chunk async for chunk in chain(model).astream({"word": "whiskey"}, config)]) > 1


@mode("chain.batch", *CHAT, calls=3)
def chain_batch(model: Any, config: RunnableConfig) -> None:
    chain(model).batch([{"word": word} for word in ("xray", "yankee", "zulu")], config)


@mode("chain.abatch", *CHAT, calls=3)
async def chain_abatch(model: Any, config: RunnableConfig) -> None:
    await chain(model).abatch([{"word": word} for word in ("amber", "beige", "coral")], config)


@mode("RunnableParallel", "ChatOpenAI", "ChatAnthropic", calls=3)
def parallel(model: Any, config: RunnableConfig) -> None:
    steps = {word: RunnableLambda(lambda _, word=word: word) | model for word in ("denim", "ebony", "flint")}
    RunnableParallel(steps).invoke({}, config)


@mode("RunnableParallel async", "ChatOpenAI", "ChatAnthropic", calls=3)
async def parallel_async(model: Any, config: RunnableConfig) -> None:
    steps = {word: RunnableLambda(lambda _, word=word: word) | model for word in ("green", "henna", "ivory")}
    await RunnableParallel(steps).ainvoke({}, config)


class City(BaseModel):
    """A city."""

    name: str


@mode("structured output", "ChatOpenAI", "responses API")
def structured(model: Any, config: RunnableConfig) -> None:
    assert model.with_structured_output(City).invoke("Lisbon", config) == City(name="Lisbon")


@mode("a stream inside a node", "ChatOpenAI", calls=2)
def stream_and_invoke(model: Any, config: RunnableConfig) -> None:
    """Call a model while a stream of the same model is being read."""

    def node(_: Any, config: RunnableConfig) -> None:
        for number, _ in enumerate(model.stream("jade", config)):
            if number == 1:
                model.invoke("khaki", config)

    RunnableLambda(node).invoke({}, config)


@tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


def agent(model: Any) -> Any:
    return create_agent(model, [weather])


QUESTION = {"messages": [("user", "Weather in Porto")]}


@mode("create_agent invoke", "LangGraph", calls=2)
def agent_invoke(model: Any, config: RunnableConfig) -> None:
    assert "sunny in Porto" in agent(model).invoke(QUESTION, config)["messages"][-1].text


@mode("create_agent ainvoke", "LangGraph", calls=2, needs_task_context=True)
async def agent_ainvoke(model: Any, config: RunnableConfig) -> None:
    answer = await agent(model).ainvoke(QUESTION, config)
    assert "sunny in Porto" in answer["messages"][-1].text


@mode("create_agent stream", "LangGraph", calls=2)
def agent_stream(model: Any, config: RunnableConfig) -> None:
    assert len(list(agent(model).stream(QUESTION, config, stream_mode="messages"))) > 2


@mode("create_agent astream", "LangGraph", calls=2, needs_task_context=True)
async def agent_astream(model: Any, config: RunnableConfig) -> None:
    assert len([part async for part in agent(model).astream(QUESTION, config, stream_mode="messages")]) > 2


@mode("create_agent astream_events", "LangGraph", calls=2, needs_task_context=True)
async def agent_events(model: Any, config: RunnableConfig) -> None:
    assert len([event async for event in agent(model).astream_events(QUESTION, config, version="v2")]) > 2


@mode("create_agent batch", "LangGraph", calls=4)
def agent_batch(model: Any, config: RunnableConfig) -> None:
    agent(model).batch([{"messages": [("user", f"Weather in {city}")]} for city in ("Faro", "Braga")], config)


def react(model: Any) -> Any:
    with warnings.catch_warnings():
        # LangGraph warns that create_agent should be used instead.
        warnings.simplefilter("ignore")
        return create_react_agent(model, [weather])


@mode("create_react_agent invoke", "LangGraph", calls=2)
def react_invoke(model: Any, config: RunnableConfig) -> None:
    react(model).invoke(QUESTION, config)


@mode("create_react_agent ainvoke", "LangGraph", calls=2)
async def react_ainvoke(model: Any, config: RunnableConfig) -> None:
    await react(model).ainvoke(QUESTION, config)


@mode("create_react_agent astream", "LangGraph", calls=2)
async def react_astream(model: Any, config: RunnableConfig) -> None:
    assert [part async for part in react(model).astream(QUESTION, config)]


def tools_graph(model: Any) -> Any:
    """A graph whose only node runs three tools concurrently, each of which calls the model."""

    @tool
    def ask(word: str) -> str:
        """Ask the model."""
        return str(model.invoke(word).text)

    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([ask]))
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    return graph.compile()


def three_tools(*words: str) -> Any:
    calls = [{"name": "ask", "args": {"word": word}, "id": word} for word in words]
    return {"messages": [AIMessage("", tool_calls=calls)]}


@mode("parallel tools in threads", "LangGraph", calls=3)
def parallel_tools(model: Any, config: RunnableConfig) -> None:
    tools_graph(model).invoke(three_tools("lilac", "mauve", "navy"), config)


@mode("parallel tools in threads, async graph", "LangGraph", calls=3)
async def parallel_tools_async(model: Any, config: RunnableConfig) -> None:
    await tools_graph(model).ainvoke(three_tools("ochre", "pearl", "quartz"), config)


class Words(TypedDict):
    word: str


@mode("parallel nodes, async", "LangGraph", calls=2, needs_task_context=True)
async def parallel_nodes(model: Any, config: RunnableConfig) -> None:
    async def left(state: Words) -> None:
        await model.ainvoke("ruby")

    async def right(state: Words) -> None:
        await model.ainvoke("slate")

    graph = StateGraph(Words)
    for node in (left, right):
        graph.add_node(node.__name__, node)
        graph.add_edge(START, node.__name__)
    await graph.compile().ainvoke({"word": ""}, config)


def run(chosen: Mode, model: BaseChatModel, config: RunnableConfig, loop: asyncio.AbstractEventLoop) -> None:
    """Run a mode to its end, in the caller's context.

    Args:
        loop: Async clients are shared by all models with one base URL, and belong to the loop that first used them.
    """
    result = chosen.run(model, config)
    if isinstance(result, Awaitable):
        loop.run_until_complete(_wait(result))


async def _wait(result: Awaitable[Any]) -> None:
    await result
