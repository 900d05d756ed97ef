"""instrument() alone: LangChain's runs are followed if the program has langchain-core, and ignored otherwise."""

import subprocess
import sys
from typing import Any

import mlflow
import pytest

from tests.support.client import GATEWAY, Wire, isolated, named_by, value_of  # noqa: F401

pytest.importorskip("langchain_core")

from agent_gateway_client import GatewayCallbackHandler, instrument, uninstrument
from agent_gateway_client._langchain_runs._methods import patches
from tests.langchain.test_patches import changed, functions
from tests.support.langchain import each_autolog, http_model, messages, own_parents, parents  # noqa: F401


async def read(parts: Any) -> None:
    async for _ in parts:
        pass


CALLS = {
    "invoke": lambda model: model.invoke("a"),
    "ainvoke": lambda model: model.ainvoke("a"),
    "stream": lambda model: list(model.stream("a")),
    "astream": lambda model: read(model.astream("a")),
    "generate": lambda model: model.generate(messages("a", "b")),
    "agenerate": lambda model: model.agenerate(messages("a", "b")),
    "abatch": lambda model: model.abatch(["a", "b"]),
}


@pytest.mark.parametrize("call", CALLS)
async def test_requests_name_the_models_span(call: str, autolog: str):
    """Without a handler too, each prompt's request has its own span; after the call the outer span is active."""
    wire = Wire()
    with mlflow.start_span("agent") as agent, instrument(GATEWAY):
        await value_of(CALLS[call](http_model(wire)))
        active = mlflow.get_current_active_span()
        assert active is not None
        assert active.span_id == agent.span_id
    words = ["a", "b"] if call in ("generate", "agenerate", "abatch") else ["a"]
    assert parents(wire) == own_parents(words, named_by(agent), autolog)


def test_it_is_undone():
    """LangChain's methods are replaced while the process has any gateway, and then restored."""
    before = functions()
    first, second = instrument(GATEWAY), instrument("http://other.test")
    assert len(patches.handles) == 1
    first.uninstrument()
    assert changed(before)
    with GatewayCallbackHandler(GATEWAY):
        second.uninstrument()
        assert changed(before)
    assert changed(before) == set()
    with instrument(GATEWAY):
        uninstrument()
        assert changed(before) == set()


PROGRAM = """
import sys
from agent_gateway_client import instrument
finders = list(sys.meta_path)
handle = instrument("http://gateway.test")
assert not [name for name in sys.modules if name.startswith(("langchain_core", "agent_gateway_client.langchain"))]
{undo}
from langchain_core.language_models import {model} as Model
method = vars(Model)["generate"]
print(hasattr(method, "__wrapped__"))
handle.uninstrument()
print(hasattr(vars(Model)["generate"], "__wrapped__"), sys.meta_path == finders)
"""


@pytest.mark.parametrize("model", ["BaseChatModel", "BaseLLM"])
@pytest.mark.parametrize(("undo", "followed"), [("", True), ("handle.uninstrument()", False)])
def test_langchain_that_is_imported_later(model: str, undo: str, followed: bool):
    """It imports nothing of LangChain; once the program does, its runs are followed until the undo."""
    program = PROGRAM.format(model=model, undo=undo)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(followed), "False", "True"]
