"""The methods of LangChain in which a call of a model begins and a model's own code runs, and what replaces them.

A callback handler is told that a model's run starts and ends. It is not told which of several prompts a request belongs
to, that a stream is suspended, that a call was cancelled, or which other handler keeps the run's span.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

from agent_gateway_client._guard import Guard
from agent_gateway_client._patching import PatchSet, Replace, Switch
from agent_gateway_client.active_span import model_call
from agent_gateway_client.langchain._calls import LangChainCall

Method = Callable[..., Any]

_guard = Guard("Could not follow a LangChain run; its requests carry a less specific parent span", "langchain-core")


def _call(original: Method, switch: Switch) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(*args, **kwargs)
        call = new_call(args, kwargs)
        try:
            with call:
                return original(*args, **kwargs)
        finally:
            call.end()

    new_call = _maker(original)
    return replacement


def _async_call(original: Method, switch: Switch) -> Method:
    async def replacement(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(*args, **kwargs)
        call = new_call(args, kwargs)
        try:
            with call:
                return await original(*args, **kwargs)
        finally:
            call.end()

    new_call = _maker(original)
    return replacement


def _steps(original: Method, switch: Switch) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> Iterator[Any]:
        return steps_of(args, kwargs) if switch.is_on else original(*args, **kwargs)

    def steps_of(args: Any, kwargs: Any) -> Iterator[Any]:
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


def _async_steps(original: Method, switch: Switch) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return steps_of(args, kwargs) if switch.is_on else original(*args, **kwargs)

    async def steps_of(args: Any, kwargs: Any) -> AsyncIterator[Any]:
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


def _start(original: Method, switch: Switch) -> Method:
    def replacement(manager: Any, *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(manager, *args, **kwargs)
        call, place = _starting(manager)
        with place:
            managers = original(manager, *args, **kwargs)
        with _guard:
            call.belongs_to(managers)
        return managers

    return replacement


def _async_start(original: Method, switch: Switch) -> Method:
    async def replacement(manager: Any, *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(manager, *args, **kwargs)
        call, place = _starting(manager)
        with place:
            managers = await original(manager, *args, **kwargs)
        with _guard:
            call.belongs_to(managers)
        return managers

    return replacement


def _starting(manager: Any) -> tuple[LangChainCall, AbstractContextManager[Any]]:
    """Return the call that the run belongs to, and the context manager to start the run in."""
    current = model_call.get()
    # stream_events(version="v3") starts the run in its reader's code, and reads on in another call.
    is_new = not isinstance(current, LangChainCall) or current.has_begun
    call = LangChainCall() if is_new else cast(LangChainCall, current)
    with _guard:
        call.begin(manager.handlers)
    return call, call if is_new else nullcontext()


def _maker(original: Method) -> Callable[[tuple[Any, ...], dict[str, Any]], LangChainCall]:
    """Return a function that makes a call from a method's arguments; it has begun if they include the run's manager.

    Raises:
        AttributeError: The method is private and takes no manager.
    """
    parameters = list(inspect.signature(original).parameters)
    name = next((name for name in ("run_manager", "run_managers") if name in parameters), "")
    if not name and original.__name__.startswith("_"):
        raise AttributeError(f"{original.__qualname__} takes no run_manager")
    position = parameters.index(name) if name else 0

    def make(args: tuple[Any, ...], kwargs: dict[str, Any]) -> LangChainCall:
        call = LangChainCall()
        with _guard:
            given = (args[position] if len(args) > position else kwargs.get(name)) if name else None
            if given:
                # Several prompts in one request: LangChain itself takes the first one's manager for the request's.
                manager = given[0] if isinstance(given, list) else given
                call.begin(manager.handlers)
                call.belongs_to([manager])
        return call

    return make


_MODELS = "langchain_core.language_models"
_CALLBACKS = "langchain_core.callbacks"

_REPLACEMENTS: dict[str, Replace] = {
    **{
        f"{_MODELS}:{model}.{name}": replace
        for model in ("BaseChatModel", "BaseLLM")
        for name, replace in (
            ("generate", _call),
            ("agenerate", _async_call),
            ("stream", _steps),
            ("astream", _async_steps),
        )
    },
    **{
        f"{_CALLBACKS}:{manager}.{name}": replace
        for manager, replace in (("CallbackManager", _start), ("AsyncCallbackManager", _async_start))
        for name in ("on_chat_model_start", "on_llm_start")
    },
    # One prompt each, where generate() may have several.
    f"{_MODELS}:BaseChatModel._generate_with_cache": _call,
    f"{_MODELS}:BaseChatModel._agenerate_with_cache": _async_call,
    f"{_MODELS}:BaseLLM._generate_helper": _call,
    f"{_MODELS}:BaseLLM._agenerate_helper": _async_call,
    # stream_events(version="v3"), which is newer than the lowest version supported.
    f"{_MODELS}:BaseChatModel._iter_v2_events?": _steps,
    f"{_MODELS}:BaseChatModel._aiter_v2_events?": _async_steps,
}

patches = PatchSet(_REPLACEMENTS, "requests of some LangChain calls carry a less specific parent span, or none")
"""Held by every open handler."""
