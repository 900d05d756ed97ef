"""Patches the methods of LangChain that start a model call or run a model's own code.

A callback handler is notified of the start and the end of a model's run. It cannot see which of several prompts a
request belongs to, that a stream is suspended, that a call was cancelled, or which other handler keeps the run's span.

While a handler exists, all runs of the process use these methods, and most runs do not have the handler. A run's
handlers are known when it starts. Nothing is recorded before that, and afterwards only for runs that are followed.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

from agent_gateway_client._guard import Guard
from agent_gateway_client._langchain_runs._calls import GatewaysHandler, LangChainCall
from agent_gateway_client._patching import Finder, PatchSet, Replace, Switch, find_argument
from agent_gateway_client.active_span import model_call
from agent_gateway_client.gateways import NO_GATEWAYS

Method = Callable[..., Any]

_guard = Guard("Could not follow a LangChain run; its requests carry a less specific parent span", "langchain-core")

_NOTHING = nullcontext()


_Run = list[LangChainCall | None]
"""The LangChain run of the patched method that is on the stack: empty before the run has started, then its call, or
``None`` if it is not followed. Any later start inside the method is that of another run.

A list, because creating an instance of a class takes longer, and every run of the process needs one.
"""

_run: ContextVar[_Run | None] = ContextVar("agent_gateway_client.langchain_run", default=None)


ALL_RUNS = "all runs"
"""The handle in :data:`patches` that makes runs without our handler be followed too."""

_follows_all = False
"""Whether to follow runs without our handler too, because :func:`agent_gateway_client.instrument` is active."""


def _followed(handlers: Sequence[Any]) -> LangChainCall | None:
    """Return a call for a run with these handlers.

    Returns:
        ``None`` if the run has no gateways and is not inside another call. The gateways of that call must not apply.
    """
    gateways = NO_GATEWAYS
    for handler in handlers:
        if isinstance(handler, GatewaysHandler) and handler.gateways is not NO_GATEWAYS:
            gateways = handler.gateways if gateways is NO_GATEWAYS else gateways | handler.gateways
    if gateways is NO_GATEWAYS and not _follows_all and model_call.get() is None:
        return None
    try:
        return LangChainCall(gateways)
    except Exception as error:
        _guard.caught(error)
        return None


def _given(manager: Any) -> LangChainCall | None:
    """Return a call for a run that has started; ``None`` if the run is not followed or its call is already current."""
    current = model_call.get()
    if manager is None or (isinstance(current, LangChainCall) and current.manager is manager):
        return None
    call = _followed(manager.handlers)
    if call is not None:
        call.manager = manager
    return call


def _makes_run(original: Method, switch: Switch) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(*args, **kwargs)
        run: _Run = []
        token = _run.set(run)
        try:
            return original(*args, **kwargs)
        finally:
            _run.reset(token)
            if run and run[0] is not None:
                _end(run[0])

    return replacement


def _makes_run_async(original: Method, switch: Switch) -> Method:
    async def replacement(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(*args, **kwargs)
        run: _Run = []
        token = _run.set(run)
        try:
            return await original(*args, **kwargs)
        finally:
            # The garbage collector closes an unfinished coroutine in a different context.
            with suppress(ValueError):
                _run.reset(token)
            if run and run[0] is not None:
                _end(run[0])

    return replacement


def _has_started(call: LangChainCall, managers: list[Any], *, is_made: bool) -> None:
    if len(managers) == 1:
        call.manager = managers[0]
    if not is_made or len(managers) > 1:
        _follow_prompts()


def _end(call: LangChainCall) -> None:
    call.__exit__()
    call.end()


def _starts(original: Method, switch: Switch) -> Method:
    # Python passes on *args as they are, but copies them if there are other parameters.
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(*args, **kwargs)
        call, run = _followed(args[0].handlers), _run.get()
        # stream_events(version="v3") starts the run in its reader's code and continues it in a different call.
        if is_made := run is not None and not run:
            run.append(call)
        if call is None:
            return original(*args, **kwargs)
        call.__enter__()
        try:
            managers = original(*args, **kwargs)
            _has_started(call, managers, is_made=is_made)
            return managers
        finally:
            if not is_made:
                _end(call)

    return replacement


def _starts_async(original: Method, switch: Switch) -> Method:
    async def replacement(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(*args, **kwargs)
        call, run = _followed(args[0].handlers), _run.get()
        # stream_events(version="v3") starts the run in its reader's code and continues it in a different call.
        if is_made := run is not None and not run:
            run.append(call)
        if call is None:
            return await original(*args, **kwargs)
        call.__enter__()
        try:
            managers = await original(*args, **kwargs)
            _has_started(call, managers, is_made=is_made)
            return managers
        finally:
            if not is_made:
                _end(call)

    return replacement


def _is_given(original: Method, switch: Switch) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        call = _given(manager_of(args, kwargs)) if switch.is_on else None
        if call is None:
            return original(*args, **kwargs)
        try:
            with call:
                return original(*args, **kwargs)
        finally:
            call.end()

    manager_of = _finder(original)
    return replacement


def _is_given_async(original: Method, switch: Switch) -> Method:
    async def replacement(*args: Any, **kwargs: Any) -> Any:
        call = _given(manager_of(args, kwargs)) if switch.is_on else None
        if call is None:
            return await original(*args, **kwargs)
        try:
            with call:
                return await original(*args, **kwargs)
        finally:
            call.end()

    manager_of = _finder(original)
    return replacement


def _steps(original: Method, switch: Switch, is_given: bool = False) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> Iterator[Any]:
        return steps_of(args, kwargs) if switch.is_on else original(*args, **kwargs)

    def steps_of(args: Any, kwargs: Any) -> Iterator[Any]:
        call: LangChainCall | None = None
        run: _Run = []
        if manager_of is not None:
            call = _given(manager_of(args, kwargs))
            run.append(None)
        try:
            token = _run.set(run)
            try:
                if call is None:
                    steps = original(*args, **kwargs)
                    item = next(steps)
                else:
                    with call:
                        steps = original(*args, **kwargs)
                        item = next(steps)
            except StopIteration:
                return
            finally:
                _run.reset(token)
                if run and run[0] is not None:
                    call = run[0]
                    call.__exit__()
            while True:
                try:
                    yield item
                except GeneratorExit:
                    with call or _NOTHING:
                        steps.close()
                    raise
                except BaseException as error:
                    step = partial(steps.throw, error)
                else:
                    if call is None:
                        yield from steps
                        return
                    step = partial(next, steps)
                try:
                    with call or _NOTHING:
                        item = step()
                except StopIteration:
                    return
        finally:
            if call is not None:
                call.end()

    manager_of = _finder(original) if is_given else None
    return replacement


def _steps_async(original: Method, switch: Switch, is_given: bool = False) -> Method:
    def replacement(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return steps_of(args, kwargs) if switch.is_on else original(*args, **kwargs)

    async def steps_of(args: Any, kwargs: Any) -> AsyncIterator[Any]:
        call: LangChainCall | None = None
        run: _Run = []
        if manager_of is not None:
            call = _given(manager_of(args, kwargs))
            run.append(None)
        try:
            token = _run.set(run)
            try:
                if call is None:
                    steps = original(*args, **kwargs)
                    item = await steps.__anext__()
                else:
                    with call:
                        steps = original(*args, **kwargs)
                        item = await steps.__anext__()
            except StopAsyncIteration:
                return
            finally:
                with suppress(ValueError):
                    _run.reset(token)
                if run and run[0] is not None:
                    call = run[0]
                    call.__exit__()
            while True:
                try:
                    yield item
                except GeneratorExit:
                    with call or _NOTHING:
                        await steps.aclose()
                    raise
                except BaseException as error:
                    step = partial(steps.athrow, error)
                else:
                    step = steps.__anext__
                try:
                    if call is None:
                        item = await step()
                    else:
                        with call:
                            item = await step()
                except StopAsyncIteration:
                    return
        finally:
            if call is not None:
                call.end()

    manager_of = _finder(original) if is_given else None
    return replacement


def _finder(original: Method) -> Finder:
    def manager_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = argument(args, kwargs)
        # One request for several prompts: LangChain too uses the first prompt's manager for it.
        return (given[0] if given else None) if isinstance(given, list) else given

    argument = find_argument(original, "run_manager", "run_managers")
    return manager_of


_MODELS = "langchain_core.language_models"
_CALLBACKS = "langchain_core.callbacks"

_REPLACEMENTS: dict[str, Replace] = {
    **{
        f"{_MODELS}:{model}.{name}": replace
        for model in ("BaseChatModel", "BaseLLM")
        for name, replace in (
            ("generate", _makes_run),
            ("agenerate", _makes_run_async),
            ("stream", _steps),
            ("astream", _steps_async),
        )
    },
    **{
        f"{_CALLBACKS}:{manager}.{name}": replace
        for manager, replace in (("CallbackManager", _starts), ("AsyncCallbackManager", _starts_async))
        for name in ("on_chat_model_start", "on_llm_start")
    },
    # One request for several prompts; async code starts their runs in separate tasks.
    f"{_MODELS}:BaseLLM._generate_helper": _is_given,
    f"{_MODELS}:BaseLLM._agenerate_helper": _is_given_async,
    # stream_events(version="v3"), which the lowest supported version does not have.
    f"{_MODELS}:BaseChatModel._iter_v2_events?": partial(_steps, is_given=True),
    f"{_MODELS}:BaseChatModel._aiter_v2_events?": partial(_steps_async, is_given=True),
}

_PROMPTS: dict[str, Replace] = {
    f"{_MODELS}:BaseChatModel._generate_with_cache": _is_given,
    f"{_MODELS}:BaseChatModel._agenerate_with_cache": _is_given_async,
}
"""Called once per prompt if ``generate()`` has several."""

_LESS_SPECIFIC = "requests of some LangChain calls carry a less specific parent span, or none"


def _changed(handles: tuple[Any, ...]) -> None:
    global _follows_all
    _follows_all = ALL_RUNS in handles
    if not handles:
        prompts.remove(patches, wait=False)


def _follow_prompts() -> None:
    """Start to follow single prompts. Most runs have one prompt and do not need this."""
    prompts.add(patches)
    if not patches.handles:
        # Another thread has closed the last handler in the meantime.
        prompts.remove(patches, wait=False)


patches = PatchSet(_REPLACEMENTS, _LESS_SPECIFIC, _changed)
"""Held by every open handler."""

prompts = PatchSet(_PROMPTS, _LESS_SPECIFIC)
"""Held by :data:`patches`, starting with the first run that needs them."""
