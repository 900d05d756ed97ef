"""langchain.py: patches, their exact removal, and what remains if LangChain or MLflow changes."""

import asyncio
import gc
import inspect
import subprocess
import sys
import threading
from functools import partial
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from opentelemetry import trace

from tests.support.client import (
    GATEWAY,
    STACKS,
    BrokenSpan,
    Wire,
    isolated,  # noqa: F401
    named_by,
    warnings_in,
)

pytest.importorskip("langchain_core")

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.language_models import BaseChatModel, BaseLLM

from agent_gateway_client import _log, instrument, uninstrument
from agent_gateway_client._install import install_command
from agent_gateway_client._langchain_runs import _mlflow as _langchain_mlflow
from agent_gateway_client._langchain_runs._methods import patches, prompts
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.langchain import GatewayCallbackHandler
from tests.support.langchain import (
    AsyncWire,
    each_autolog,  # noqa: F401
    http_model,
    messages,
    model_spans,
    open_handler,  # noqa: F401
    parents,
)

OWNERS = [BaseChatModel, BaseLLM, CallbackManager, AsyncCallbackManager]
HTTP_OWNERS = [getattr(stack, kind) for stack in STACKS for kind in ("Client", "AsyncClient")]


def functions() -> dict[tuple[type, str], Any]:
    """Return everything in the classes that are patched."""
    return {(owner, name): value for owner in [*OWNERS, *HTTP_OWNERS] for name, value in vars(owner).items()}


def changed(before: dict[Any, Any]) -> set[tuple[type, str]]:
    """Return the attributes that are no longer the same objects."""
    now = functions()
    return {key for key in {*before, *now} if before.get(key) is not now.get(key)}


def test_the_last_one_that_is_closed_puts_everything_back():
    """While a handler is open methods are replaced; closing the last one restores the very same objects."""
    before = functions()
    first, second = GatewayCallbackHandler(GATEWAY), GatewayCallbackHandler(GATEWAY)
    replaced = changed(before)
    assert {owner for owner, _ in replaced} == {*OWNERS, *HTTP_OWNERS}
    first.close()
    first.close()
    assert changed(before) == replaced
    second.close()
    assert changed(before) == set()


def test_what_tells_prompts_apart_is_replaced_when_it_is_needed():
    """Runs with one prompt do not need it; the first run with several installs it until the last handler closes."""
    before = functions()
    wire = Wire()
    with GatewayCallbackHandler(GATEWAY) as handler:
        without = changed(before)
        http_model(wire).generate(messages("a", "b"))
        http_model(wire).invoke("a", {"callbacks": [handler]})
        assert changed(before) == without
        http_model(wire).generate(messages("a", "b"), callbacks=[handler])
        assert {name for _, name in changed(before) - without} == {path.rpartition(".")[2] for path in prompts._patches}
    assert changed(before) == set()


def test_as_a_context_manager():
    """At the end of ``with`` everything is restored."""
    before = functions()
    with GatewayCallbackHandler(GATEWAY):
        assert changed(before)
    assert changed(before) == set()


def test_a_handler_that_nobody_uses_any_more_is_undone():
    """Once a handler is unreferenced, its patches are removed; a handler in use is not affected."""
    before = functions()
    with GatewayCallbackHandler(GATEWAY):
        GatewayCallbackHandler(GATEWAY)
        gc.collect()
        assert changed(before)
    assert changed(before) == set()
    handler = GatewayCallbackHandler(GATEWAY)
    assert changed(before)
    del handler
    gc.collect()
    assert changed(before) == set()


def test_in_threads():
    """Handlers that many threads open and close concurrently restore everything."""
    before = functions()
    wire = Wire()
    start = threading.Barrier(8)

    def use() -> None:
        start.wait()
        for _ in range(20):
            with GatewayCallbackHandler(GATEWAY) as handler:
                http_model(wire).invoke("a", {"callbacks": [handler]})

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wire.requests) == 160
    assert changed(before) == set()


def test_a_closed_handler_sends_nothing():
    """A closed handler has no effect, also next to an open one."""
    wire = Wire()
    closed = GatewayCallbackHandler(GATEWAY)
    with GatewayCallbackHandler(GATEWAY) as handler, mlflow.start_span("agent") as span:
        closed.close()
        http_model(wire).invoke("a", {"callbacks": [closed]})
        http_model(wire).invoke("b", {"callbacks": [closed, handler]})
    assert wire.sent() == [[], [named_by(span)]]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_class_instead_of_a_handler_is_reported_once(caplog: pytest.LogCaptureFixture, is_async: bool):
    """LangChain ignores it without a word. Looking at the class, as help() does, reports nothing."""
    _log._warned.discard("langchain.class")
    inspect.getmembers(GatewayCallbackHandler)
    assert caplog.messages == []
    model = http_model(AsyncWire(partial(asyncio.sleep, 0)) if is_async else Wire())
    config: Any = {"callbacks": [GatewayCallbackHandler]}
    for _ in range(2):
        if is_async:
            await model.ainvoke("a", config)
        else:
            model.invoke("a", config)
    (message,) = [text for text in caplog.messages if "GatewayCallbackHandler" in text]
    assert "Pass an instance" in message


def test_langchain_skips_an_open_handlers_events():
    """Each event would cost some microseconds."""
    events = []

    class Listening(GatewayCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            events.append("start")

        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            events.append("end")

    with Listening(GATEWAY) as handler:
        http_model(Wire()).invoke("a", {"callbacks": [handler]})
    assert events == []


def test_a_subclass_may_listen():
    """It answers LangChain's question itself, here with a property, which cannot be set."""
    events = []

    class Listening(GatewayCallbackHandler):
        @property
        def ignore_chat_model(self) -> bool:
            return False

        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            events.append("start")

    with Listening(GATEWAY) as handler:
        http_model(Wire()).invoke("a", {"callbacks": [handler]})
    assert events == ["start"]


def test_a_closed_handler_is_reported_at_debug(caplog: pytest.LogCaptureFixture):
    handler = GatewayCallbackHandler(GATEWAY)
    handler.close()
    http_model(Wire()).invoke("a", {"callbacks": [handler]})
    assert caplog.messages == []
    with caplog.at_level("DEBUG", "agent_gateway_client"):
        http_model(Wire()).invoke("a", {"callbacks": [handler]})
    assert [text for text in caplog.messages if text.startswith("A closed")]


def test_several_handlers_with_gateways_of_their_own():
    """A run may send trace context to the gateways of all its handlers."""
    wire = Wire()
    with GatewayCallbackHandler("http://one.test") as one, GatewayCallbackHandler("http://two.test") as two:
        for callbacks in ([one], [two], [one, two]):
            for host in ("one", "two"):
                with mlflow.start_span("agent"):
                    http_model(wire, base_url=f"http://{host}.test").invoke("a", {"callbacks": callbacks})
    assert [len(sent) for sent in wire.sent()] == [1, 0, 0, 1, 1, 1]


def test_beside_instrument(autolog: str, handler: GatewayCallbackHandler):
    """With instrument() too there is one header, still with the call's span; each can be closed without the other."""
    wire = Wire()
    with mlflow.start_span("agent") as span:
        with instrument(GATEWAY):
            http_model(wire).invoke("a", {"callbacks": [handler]})
            http_model(wire).invoke("b")
        uninstrument()
        http_model(wire).invoke("c", {"callbacks": [handler]})
        http_model(wire).invoke("d")
    spans = model_spans()
    assert parents(wire) == {word: [spans.get(word, named_by(span))] for word in "abc"} | {"d": []}


def test_the_environment_names_gateways(monkeypatch: pytest.MonkeyPatch):
    """Without arguments a handler's gateways are those of AGENT_GATEWAY_URLS at its creation."""
    monkeypatch.setenv("AGENT_GATEWAY_URLS", f"http://one.test, {GATEWAY}")
    wire = Wire()
    with GatewayCallbackHandler() as handler, mlflow.start_span("agent") as span:
        monkeypatch.delenv("AGENT_GATEWAY_URLS")
        http_model(wire).invoke("a", {"callbacks": [handler]})
    assert wire.sent() == [[named_by(span)]]


@pytest.mark.parametrize("gateways", [(), ("gw.test",), ("ftp://gw.test",)])
def test_what_cannot_be_a_gateway_is_an_error_at_once(gateways: tuple[Any, ...]):
    """Creating a handler without gateways, or with an invalid URL, raises an error, and nothing is replaced."""
    before = functions()
    with pytest.raises(ConfigurationError, match="http://"):
        GatewayCallbackHandler(*gateways)
    assert changed(before) == set()


def test_without_langchain():
    """Without LangChain, asking for the handler raises an error that says what to install; other features work."""
    program = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "import agent_gateway_client\n"
        "agent_gateway_client.instrument('http://gw.test').uninstrument()\n"
        "try:\n    from agent_gateway_client.langchain import GatewayCallbackHandler\n"
        "except ImportError as error:\n    print(type(error).__name__, error)\n"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.startswith("MissingDependencyError")
    assert install_command("langchain") in output


@pytest.mark.usefixtures("guards_hold")
def test_a_langchain_without_its_private_methods(
    autolog: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Without LangChain's private methods the parent is less specific; a warning says so."""
    for held in (patches, prompts):
        moved = {
            path if "?" in path else path.replace("._", ".moved_"): replace
            for path, replace in held._replacements.items()
        }
        monkeypatch.setattr(held, "_replacements", moved)
        monkeypatch.setattr(held, "_patches", {})
    wire = Wire()
    with GatewayCallbackHandler(GATEWAY) as handler, mlflow.start_span("agent") as span:
        http_model(wire).invoke("a", {"callbacks": [handler]})
        http_model(wire).generate(messages("b", "c"), callbacks=[handler])
    spans = model_spans()
    found = parents(wire)
    assert found["a"] == [spans.get("a", named_by(span))]
    # MLflow has the last prompt's span active.
    assert found["b"] == found["c"] == [spans.get("c", named_by(span))]
    warnings = warnings_in(caplog)
    assert len(warnings) == 4
    assert all(f"langchain-core {metadata.version('langchain-core')}" in warning for warning in warnings)


TRACER, PROVIDER = "mlflow.langchain.langchain_tracer", "mlflow.tracing.provider"

ANOTHER_MLFLOW = {
    "no tracer": {TRACER: SimpleNamespace()},
    "a tracer that keeps no spans": {TRACER: SimpleNamespace(MlflowLangchainTracer=GatewayCallbackHandler)},
    "no context": {PROVIDER: SimpleNamespace()},
    "nothing": {TRACER: SimpleNamespace(), PROVIDER: SimpleNamespace()},
}


@pytest.mark.usefixtures("guards_hold")
@pytest.mark.parametrize("difference", ANOTHER_MLFLOW)
async def test_another_mlflow(
    difference: str,
    autolog: str,
    handler: GatewayCallbackHandler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """If MLflow does not provide a run's span, the active one is the parent, and one warning per loss says so."""
    modules = {**sys.modules, **ANOTHER_MLFLOW[difference]}
    monkeypatch.setattr(_langchain_mlflow, "sys", SimpleNamespace(modules=modules))
    wire = Wire()
    with mlflow.start_span("agent") as span:
        for word in ("a", "b"):
            await http_model(wire).ainvoke(word, {"callbacks": [handler]})
    spans = model_spans()
    # Inline, MLflow also makes the span active for the model's code.
    knows = autolog == "inline" or (autolog == "on" and difference == "no context")
    assert parents(wire) == {word: [spans[word] if knows else named_by(span)] for word in ("a", "b")}
    warnings = warnings_in(caplog)
    assert len(warnings) == len(ANOTHER_MLFLOW[difference])
    assert all(f"mlflow-tracing {metadata.version('mlflow-tracing')}" in warning for warning in warnings)


@pytest.mark.usefixtures("guards_hold")
def test_a_span_that_raises(caplog: pytest.LogCaptureFixture, handler: GatewayCallbackHandler):
    """If reading the active span raises, calls work, and one warning says so."""
    wire = Wire()
    with trace.use_span(BrokenSpan(), record_exception=False, set_status_on_exception=False):
        for word in ("a", "b"):
            assert http_model(wire).invoke(word, {"callbacks": [handler]}).text == word
    assert wire.sent() == [[], []]
    warnings = warnings_in(caplog)
    assert len(warnings) == len(set(warnings)) <= 2
    assert any(f"langchain-core {metadata.version('langchain-core')}" in warning for warning in warnings)
