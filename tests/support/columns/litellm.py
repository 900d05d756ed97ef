"""LiteLLM's column of the matrix: instrument_litellm(), see tests/support/matrix.py."""

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

import litellm
import mlflow.litellm

from agent_gateway_client import instrument_litellm
from tests.support.matrix import MINI, Cell, run_column

AUTOLOG = ("off", "on")

CLAUDE = ("anthropic/claude-3-5-haiku-20241022", "OK")
EMBEDDER = ("openai/text-embedding-3-small", "OK")
GEMINI = ("databricks/gemini-2.0-flash", "OK")
FAILS = ("openai/gpt-4o-mini-fail-500", "ERROR")

MESSAGES = [{"role": "user", "content": "one two three"}]
CHAT: dict[str, Any] = {"model": "openai/chat", "messages": MESSAGES}
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]

ROUTES = {"openai": "/openai/v1", "anthropic": "/anthropic", "gemini": "/gemini/v1beta"}


def reach(url: str, model: str) -> dict[str, Any]:
    """Return the arguments with which LiteLLM reaches one of the gateway's endpoints."""
    return {"model": model, "api_base": url + ROUTES[model.partition("/")[0]], "api_key": "none"}


def ask(function: Callable[..., Any], arguments: dict[str, Any], url: str) -> None:
    """Make a call, and read all of its result."""
    result = function(**{**arguments, **reach(url, arguments["model"])})
    if arguments.get("stream"):
        list(result)


async def ask_async(function: Callable[..., Any], arguments: dict[str, Any], url: str) -> None:
    """Like :func:`ask`, with an async function."""
    result = await function(**{**arguments, **reach(url, arguments["model"])})
    if arguments.get("stream"):
        assert [part async for part in result]


@contextmanager
def rust() -> Iterator[None]:
    os.environ["LITELLM_RUST"] = "true"
    yield
    del os.environ["LITELLM_RUST"]


def ask_rust(arguments: dict[str, Any], url: str) -> None:
    with rust():
        ask(litellm.anthropic.messages.create, arguments, url)


async def ask_rust_async(arguments: dict[str, Any], url: str) -> None:
    with rust():
        await ask_async(litellm.anthropic.messages.acreate, arguments, url)


async def ask_on_httpx(arguments: dict[str, Any], url: str) -> None:
    """Ask without aiohttp."""
    litellm.disable_aiohttp_transport = True
    litellm.in_memory_llm_clients_cache.flush_cache()
    try:
        await ask_async(litellm.acompletion, arguments, url)
    finally:
        litellm.disable_aiohttp_transport = False
        litellm.in_memory_llm_clients_cache.flush_cache()


def router(url: str) -> Any:
    models = {"first": "openai/failing", "second": "openai/chat", "answers": "openai/chat"}
    return litellm.Router(
        [
            {"model_name": name, "litellm_params": {**reach(url, model), "max_retries": 0}}
            for name, model in models.items()
        ],
        fallbacks=[{"first": ["second"]}],
        num_retries=0,
    )


def ask_router(model: str, arguments: dict[str, Any], url: str) -> None:
    result = router(url).completion(model, MESSAGES, **arguments)
    if arguments:
        list(result)


async def ask_router_async(model: str, arguments: dict[str, Any], url: str) -> None:
    result = await router(url).acompletion(model, MESSAGES, **arguments)
    if arguments:
        assert [part async for part in result]


async def ask_router_as_a_notebook_does(model: str, url: str) -> None:
    ask_router(model, {}, url)


def numbered(number: int) -> dict[str, Any]:
    return {"model": "openai/chat", "messages": [{"role": "user", "content": f"number{number}"}]}


def in_turn(url: str) -> None:
    for number in range(3):
        ask(litellm.completion, numbered(number), url)


async def in_turn_async(url: str) -> None:
    for number in range(3):
        await ask_async(litellm.acompletion, numbered(number), url)


def fifty_threads(url: str) -> None:
    with ThreadPoolExecutor(50) as threads:
        # A thread has no active span unless it runs in the caller's context.
        calls = [threads.submit(copy_context().run, ask, litellm.completion, numbered(n), url) for n in range(50)]
        for call in calls:
            call.result()


async def fifty_tasks(url: str) -> None:
    await asyncio.gather(*(ask_async(litellm.acompletion, numbered(number), url) for number in range(50)))


def cells(mode: str, function: str, arguments: dict[str, Any], attempt: tuple[str, str] = MINI) -> list[Cell]:
    """Return the cells for one of LiteLLM's functions: sync and async."""
    return [
        Cell("LiteLLM", mode, partial(ask, getattr(litellm, function), arguments), attempts=[attempt]),
        Cell(
            "LiteLLM",
            f"{mode}, async",
            partial(ask_async, getattr(litellm, f"a{function}"), arguments),
            attempts=[attempt],
        ),
    ]


def all_cells() -> Iterator[Cell]:
    claude = {**CHAT, "model": "anthropic/claude", "max_tokens": 99}
    gemini = {**CHAT, "model": "gemini/gemini"}
    # LiteLLM has another base URL for OpenAI's models, which the gateway does not have.
    text = {"model": "anthropic/claude", "max_tokens": 99, "prompt": "one two three"}
    for suffix, more in {"": {}, ", streamed": STREAM}.items():
        yield from cells(f"completion{suffix}", "completion", CHAT | more)
        yield from cells(f"completion of Claude{suffix}", "completion", claude | more, CLAUDE)
        yield from cells(f"completion of Gemini{suffix}", "completion", gemini | more, GEMINI)
        yield from cells(f"text completion{suffix}", "text_completion", text | more, CLAUDE)
        yield Cell("LiteLLM", f"completion{suffix}, on httpx", partial(ask_on_httpx, CHAT | more))
    for suffix, stream in {"": {}, ", streamed": {"stream": True}}.items():
        responses = {"model": "openai/responses", "input": "one two three", **stream}
        yield from cells(f"responses{suffix}", "responses", responses)
        bridged = {**responses, "model": "anthropic/claude"}
        yield from cells(f"responses of Claude{suffix}", "responses", bridged, CLAUDE)
        messages = claude | stream
        create = partial(ask_async, litellm.anthropic.messages.acreate)
        yield Cell("LiteLLM", f"anthropic.messages{suffix}", partial(create, messages), attempts=[CLAUDE])
        if hasattr(litellm, "rust_bridge"):
            yield Cell("LiteLLM in Rust", f"anthropic.messages{suffix}", partial(ask_rust, messages), attempts=[CLAUDE])
            run = partial(ask_rust_async, messages)
            yield Cell("LiteLLM in Rust", f"anthropic.messages{suffix}, async", run, attempts=[CLAUDE])
    yield from cells("completion with tools", "completion", {**CHAT, "tools": TOOLS})
    yield from cells("embedding", "embedding", {"model": "openai/embeddings", "input": ["one two", "three"]}, EMBEDDER)
    for mode, model, calls in (("Router", "answers", 1), ("Router, fallback", "first", 2)):
        yield Cell("LiteLLM", mode, partial(ask_router, model, {}), calls)
        yield Cell("LiteLLM", f"{mode}, async", partial(ask_router_async, model, {}), calls)
        yield Cell("LiteLLM", f"{mode}, in a notebook", partial(ask_router_as_a_notebook_does, model), calls)
    yield Cell("LiteLLM", "Router, streamed", partial(ask_router, "answers", STREAM))
    yield Cell("LiteLLM", "Router, streamed, async", partial(ask_router_async, "answers", STREAM))
    yield Cell("LiteLLM", "3 calls in turn", in_turn, 3)
    yield Cell("LiteLLM", "3 calls in turn, async", in_turn_async, 3)
    yield Cell("LiteLLM", "50 threads at once", fifty_threads, 50)
    yield Cell("LiteLLM", "50 tasks at once", fifty_tasks, 50)


# LiteLLM takes the finish reason, and Anthropic's last event, for the end of a stream.
CELLS = [cell._replace(leaves_early="streamed" in cell.mode) for cell in all_cells()]


def set_up(gateway_url: str, autolog: str) -> str:
    litellm.suppress_debug_info = True
    if autolog == "on":
        mlflow.litellm.autolog(silent=True)
    instrument_litellm(gateway_url)
    return gateway_url


if __name__ == "__main__":
    run_column(CELLS, set_up)
