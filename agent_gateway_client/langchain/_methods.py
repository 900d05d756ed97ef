"""The methods of LangChain in which a call of a model begins and a model's own code runs, and what replaces them.

A callback handler is told that a model's run starts and ends. It is not told which of several prompts a request belongs
to, that a stream is suspended, that a call was cancelled, or which other handler keeps the run's span.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

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
        manager = manager_of(args, kwargs) if manager_of else None
        if manager is None:
            call = LangChainCall()
        elif _is_current(manager):
            return original(*args, **kwargs)
        else:
            call = _new_call(manager)
        try:
            with call:
                return original(*args, **kwargs)
        finally:
            call.end()

    manager_of = _finder(original)
    return replacement


def _async_call(original: Method, switch: Switch) -> Method:
    async def replacement(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(*args, **kwargs)
        manager = manager_of(args, kwargs) if manager_of else None
        if manager is None:
            call = LangChainCall()
        elif _is_current(manager):
            return await original(*args, **kwargs)
        else:
            call = _new_call(manager)
        try:
            with call:
                return await original(*args, **kwargs)
        finally:
            call.end()

    manager_of = _finder(original)
    return replacement


def _steps(original: Method, switch: Switch) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> Iterator[Any]:
        return steps_of(args, kwargs) if switch.is_on else original(*args, **kwargs)

    def steps_of(args: Any, kwargs: Any) -> Iterator[Any]:
        call = _new_call(manager_of(args, kwargs) if manager_of else None)
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
                    if call.is_idle:
                        yield from steps
                        return
                    step = partial(next, steps)
        finally:
            call.end()

    manager_of = _finder(original)
    return replacement


def _async_steps(original: Method, switch: Switch) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return steps_of(args, kwargs) if switch.is_on else original(*args, **kwargs)

    async def steps_of(args: Any, kwargs: Any) -> AsyncIterator[Any]:
        call = _new_call(manager_of(args, kwargs) if manager_of else None)
        try:
            with call:
                steps = original(*args, **kwargs)
            step = steps.__anext__
            while True:
                try:
                    if call.is_idle:
                        item = await step()
                    else:
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

    manager_of = _finder(original)
    return replacement


def _start(original: Method, switch: Switch) -> Method:
    def replacement(manager: Any, *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(manager, *args, **kwargs)
        call = model_call.get()
        if isinstance(call, LangChainCall) and not call.has_begun:
            with _guard:
                call.begin(manager.handlers)
            managers = original(manager, *args, **kwargs)
        else:
            # stream_events(version="v3") starts the run in its reader's code, and reads on in another call.
            call = LangChainCall()
            _begin(call, manager)
            with call:
                managers = original(manager, *args, **kwargs)
        with _guard:
            if len(managers) == 1:
                call.manager = managers[0]
        return managers

    return replacement


def _async_start(original: Method, switch: Switch) -> Method:
    async def replacement(manager: Any, *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(manager, *args, **kwargs)
        call = model_call.get()
        if isinstance(call, LangChainCall) and not call.has_begun:
            with _guard:
                call.begin(manager.handlers)
            managers = await original(manager, *args, **kwargs)
        else:
            # stream_events(version="v3") starts the run in its reader's code, and reads on in another call.
            call = LangChainCall()
            _begin(call, manager)
            with call:
                managers = await original(manager, *args, **kwargs)
        with _guard:
            if len(managers) == 1:
                call.manager = managers[0]
        return managers

    return replacement


def _begin(call: LangChainCall, manager: Any) -> None:
    with _guard:
        call.begin(manager.handlers)


def _new_call(manager: Any) -> LangChainCall:
    """Return a new call, which has begun if the manager of its run is known."""
    call = LangChainCall()
    if manager is not None:
        call.manager = manager
        _begin(call, manager)
    return call


def _is_current(manager: Any) -> bool:
    """Tell whether an outer method has begun the call of this run, so that nothing is left to do."""
    current = model_call.get()
    return isinstance(current, LangChainCall) and current.manager is manager


def _finder(original: Method) -> Callable[[tuple[Any, ...], dict[str, Any]], Any] | None:
    """Return a function that finds the run's manager in a method's arguments; ``None`` where a method takes none.

    Raises:
        AttributeError: The method is private and takes no manager.
    """
    parameters = list(inspect.signature(original).parameters)
    name = next((name for name in ("run_manager", "run_managers") if name in parameters), "")
    if not name:
        if original.__name__.startswith("_"):
            raise AttributeError(f"{original.__qualname__} takes no run_manager")
        return None
    position = parameters.index(name)

    def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[position] if len(args) > position else kwargs.get(name)
        # Several prompts in one request: LangChain itself takes the first one's manager for the request's.
        return (given[0] if given else None) if isinstance(given, list) else given

    return find


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
