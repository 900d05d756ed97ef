"""The methods of LangChain in which a call of a model begins and a model's own code runs, and what replaces them.

A callback handler is told that a model's run starts and ends. It is not told which of several prompts a request belongs
to, that a stream is suspended, that a call was cancelled, or which other handler keeps the run's span.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.language_models import BaseChatModel, BaseLLM

from agent_gateway_client._log import logger, version_of, warn_once
from agent_gateway_client._patching import Patch
from agent_gateway_client.active_span import active_trace_context, model_call
from agent_gateway_client.langchain._calls import LangChainCall

Method = Callable[..., Any]
Wrapper = Callable[[Method], Method]


def patches() -> list[Patch]:
    """Return a patch of every method; what this version of LangChain does not have is left out, with one warning."""
    return [patch for owner, name, wrapper in _methods() if (patch := _patch(owner, name, wrapper))]


def _methods() -> Iterator[tuple[type, str, Wrapper]]:
    for model in (BaseChatModel, BaseLLM):
        yield model, "generate", _call
        yield model, "agenerate", _async_call
        yield model, "stream", _steps
        yield model, "astream", _async_steps
    for manager, start in ((CallbackManager, _start), (AsyncCallbackManager, _async_start)):
        yield manager, "on_chat_model_start", start
        yield manager, "on_llm_start", start
    # One prompt each, where generate() may have several.
    yield BaseChatModel, "_generate_with_cache", _call
    yield BaseChatModel, "_agenerate_with_cache", _async_call
    yield BaseLLM, "_generate_helper", _call
    yield BaseLLM, "_agenerate_helper", _async_call
    # stream_events(version="v3"), which is newer than the lowest version supported.
    if hasattr(BaseChatModel, "_iter_v2_events"):
        yield BaseChatModel, "_iter_v2_events", _steps
        yield BaseChatModel, "_aiter_v2_events", _async_steps


def _patch(owner: type, name: str, wrapper: Wrapper) -> Patch | None:
    try:
        patch = Patch(owner, name, lambda original, patch: wrapper(original))
        if name.startswith("_") and not _manager_parameter(getattr(owner, name)):
            raise AttributeError(f"{owner.__name__}.{name} takes no run_manager")
    except (AttributeError, ValueError) as error:
        warn_once(
            "langchain.methods",
            "langchain-core %s is not what this version of agent-gateway-client expects (%s); requests of some calls "
            "name a coarser span, or none. Upgrade agent-gateway-client.",
            version_of("langchain-core"),
            error,
        )
        return None
    return patch


def _call(original: Method) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        call = new_call(args, kwargs)
        try:
            with call:
                return original(*args, **kwargs)
        finally:
            call.end()

    new_call = _maker(original)
    return replacement


def _async_call(original: Method) -> Method:
    async def replacement(*args: Any, **kwargs: Any) -> Any:
        call = new_call(args, kwargs)
        try:
            with call:
                return await original(*args, **kwargs)
        finally:
            call.end()

    new_call = _maker(original)
    return replacement


def _steps(original: Method) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> Iterator[Any]:
        call = new_call(args, kwargs)
        try:
            with call:
                steps = original(*args, **kwargs)
            step = partial(next, steps)
            while True:
                try:
                    with call:
                        item = step()
                except StopIteration:
                    return
                try:
                    yield item
                except GeneratorExit:
                    with call:
                        steps.close()
                    raise
                except BaseException as error:
                    step = partial(steps.throw, error)
                else:
                    step = partial(next, steps)
        finally:
            call.end()

    new_call = _maker(original)
    return replacement


def _async_steps(original: Method) -> Method:
    async def replacement(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        call = new_call(args, kwargs)
        try:
            with call:
                steps = original(*args, **kwargs)
            step = steps.__anext__
            while True:
                try:
                    with call:
                        item = await step()
                except StopAsyncIteration:
                    return
                try:
                    yield item
                except GeneratorExit:
                    with call:
                        await steps.aclose()
                    raise
                except BaseException as error:
                    step = partial(steps.athrow, error)
                else:
                    step = steps.__anext__
        finally:
            call.end()

    new_call = _maker(original)
    return replacement


def _start(original: Method) -> Method:
    def replacement(manager: Any, *args: Any, **kwargs: Any) -> Any:
        call, place = _starting(manager)
        with place:
            managers = original(manager, *args, **kwargs)
        _seen(lambda: call.belongs_to(managers))
        return managers

    return replacement


def _async_start(original: Method) -> Method:
    async def replacement(manager: Any, *args: Any, **kwargs: Any) -> Any:
        call, place = _starting(manager)
        with place:
            managers = await original(manager, *args, **kwargs)
        _seen(lambda: call.belongs_to(managers))
        return managers

    return replacement


def _starting(manager: Any) -> tuple[LangChainCall, AbstractContextManager[Any]]:
    """Return the call whose run starts now, and what its start has to be done in."""
    current = model_call.get()
    if isinstance(current, LangChainCall) and not current.has_begun:
        _seen(lambda: current.begin(manager.handlers, active_trace_context()))
        return current, nullcontext()
    # stream_events(version="v3") starts the run in its reader's code, and reads on in a call of its own.
    call = LangChainCall()
    _seen(lambda: call.begin(manager.handlers, active_trace_context()))
    return call, call


def _maker(original: Method) -> Callable[[tuple[Any, ...], dict[str, Any]], LangChainCall]:
    """Return what makes a call out of a method's arguments; it has begun where they hold the run's manager."""
    name = _manager_parameter(original)
    position = list(inspect.signature(original).parameters).index(name) if name else 0

    def make(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LangChainCall:
        call = LangChainCall()
        given = (args[position] if len(args) > position else kwargs.get(name)) if name else None
        if given:
            # Several prompts in one request: LangChain itself takes the first one's manager for the request's.
            manager = given[0] if isinstance(given, list) else given
            _seen(lambda: call.begin(manager.handlers, active_trace_context()))
            _seen(lambda: call.belongs_to([manager]))
        return call

    return make


def _manager_parameter(method: Method) -> str:
    """Return the name of the parameter that holds the run's manager, or of several prompts' runs; else ``""``."""
    parameters = inspect.signature(method).parameters
    return next((name for name in ("run_manager", "run_managers") if name in parameters), "")


def _seen(see: Callable[[], None]) -> None:
    """Learn something of a call, which goes on whatever happens."""
    try:
        see()
    except Exception:
        logger.debug("A LangChain run was not seen", exc_info=True)
        warn_once(
            "langchain.run",
            "A run of langchain-core %s could not be seen; its requests name a coarser span, or none. Details are "
            "logged at level DEBUG.",
            version_of("langchain-core"),
        )
