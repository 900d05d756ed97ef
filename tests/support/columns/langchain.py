"""The matrix column of LangChain and LangGraph: GatewayCallbackHandler, see tests/support/matrix.py."""

import asyncio
from functools import partial
from typing import Any

import mlflow.langchain

from agent_gateway_client import GatewayCallbackHandler
from tests.support.columns.langchain_modes import MODES, Mode, model_for
from tests.support.matrix import MINI, Cell, run_column

AUTOLOG = ("off", "on", "inline")

ATTEMPTS = {"ChatAnthropic": [("anthropic/claude-3-5-haiku-20241022", "OK")]}

FIFTY = [f"word{number}" for number in range(50)]


def fifty_threads(model: Any, config: Any) -> None:
    model.batch(FIFTY, {**config, "max_concurrency": 50})


async def fifty_tasks(model: Any, config: Any) -> None:
    await asyncio.gather(*(model.ainvoke(word, config) for word in FIFTY))


def one_after_the_other(model: Any, config: Any) -> None:
    for word in FIFTY[:3]:
        model.invoke(word, config)


async def one_after_the_other_async(model: Any, config: Any) -> None:
    for word in FIFTY[:3]:
        await model.ainvoke(word, config)


ALL_MODES = [
    *MODES,
    Mode("ChatOpenAI", "3 calls in turn", 3, one_after_the_other),
    Mode("ChatOpenAI", "3 calls in turn, async", 3, one_after_the_other_async),
    Mode("ChatOpenAI", "50 threads at once", 50, fifty_threads),
    Mode("ChatOpenAI", "50 tasks at once", 50, fifty_tasks),
]


def set_up(gateway_url: str, autolog: str) -> tuple[str, GatewayCallbackHandler]:
    if autolog != "off":
        mlflow.langchain.autolog(run_tracer_inline=autolog == "inline", silent=True)
    return gateway_url, GatewayCallbackHandler(gateway_url)


def run(mode: Mode, given: tuple[str, GatewayCallbackHandler]) -> Any:
    url, handler = given
    return mode.run(model_for(mode.framework, f"{url}/openai/v1", f"{url}/anthropic"), {"callbacks": [handler]})


CELLS = [
    Cell(mode.framework, mode.name, partial(run, mode), mode.calls, ATTEMPTS.get(mode.framework, [MINI]))
    for mode in ALL_MODES
]

if __name__ == "__main__":
    run_column(CELLS, set_up)
