"""``instrument_litellm()`` and its patches of LiteLLM."""

import asyncio
import inspect
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any

import litellm

from agent_gateway_client._patching import PatchSet, Replace, Switch, find_argument
from agent_gateway_client.active_span import model_call
from agent_gateway_client.gateways import Gateways
from agent_gateway_client.http._process_wide import Instrumentation, gateways_for_process
from agent_gateway_client.litellm._calls import LiteLLMCall, followed_calls, guard, is_autolog, is_autologged
from agent_gateway_client.litellm._rust import RUST_REPLACEMENTS


class LiteLLMInstrumentation(Instrumentation):
    """The handle of one :func:`instrument_litellm` call. As a context manager, it undoes the call on exit."""

    def __init__(self, gateways: Gateways) -> None:
        super().__init__(gateways, for_adapter=True)
        _patches.add(self._handle)

    def uninstrument(self, *, wait: bool = True) -> None:
        """Undo this handle; others stay active. Idempotent."""
        if not self.is_on:
            return
        super().uninstrument(wait=wait)
        if self.is_held():
            return
        # Autolog would create a second span for a call that LiteLLM has not logged yet.
        for call in list(followed_calls):
            _patches.add(call)
            if call.is_forgotten:
                _patches.remove(call)
        _patches.remove(self._handle, wait=wait)
        if self.is_held():
            # Another thread has instrumented the same gateways in the meantime.
            _patches.add(self._handle)


def instrument_litellm(*urls: str | Iterable[str], gateways: Iterable[str] | None = None) -> LiteLLMInstrumentation:
    """Make LiteLLM add the trace context to every request that it sends to a gateway.

    Covers all kinds of calls, sync, async and streamed, with the router's retries and fallbacks, on all of LiteLLM's
    transports. With ``mlflow.litellm.autolog()``, enabled before or after, the mirror's parent is autolog's span of the
    call, so that tokens are counted once. Without it, the parent is the innermost active span.

    LiteLLM shares its HTTP clients with other libraries. Their requests to the gateways get the trace context too, as
    with :func:`agent_gateway_client.instrument`.

    Args:
        *urls: The gateways, ``scheme://host[:port][/prefix]`` each, as separate arguments or in a list. By default
            those in ``AGENT_GATEWAY_URLS``.
        gateways: More gateways, in the form that the other functions accept.

    Returns:
        A handle that undoes this call; as a context manager, it does so on exit.

    Raises:
        ConfigurationError: No gateway is configured, or a value is not a URL.

    Example:
        >>> from agent_gateway_client import instrument_litellm
        >>> with instrument_litellm("http://localhost:5000/gateway"):
        ...     pass  # litellm.completion(..., api_base="http://localhost:5000/gateway/openai/v1")
    """
    return LiteLLMInstrumentation(gateways_for_process(urls, "instrument_litellm", gateways))


def _begins(original: Callable[..., Any], switch: Switch) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if switch.is_on and _is_instrumented:
            try:
                if is_autologged():
                    _begin(self)
            except Exception as error:
                guard.caught(error)

    return __init__


def _begins_again(original: Callable[..., Any], switch: Switch) -> Any:
    def update_environment_variables(self: Any, *args: Any, **kwargs: Any) -> Any:
        if call := _call_of(self, switch):
            call.begin_again()
        return original(self, *args, **kwargs)

    return update_environment_variables


def _ends_before(original: Callable[..., Any], switch: Switch) -> Any:
    """End a call as soon as its logging is scheduled. It runs later, when the caller's own span may have ended."""

    def handler(self: Any, *args: Any, **kwargs: Any) -> Any:
        if call := _call_of(self, switch):
            with guard:
                _end(call, signature.bind(self, *args, **kwargs).arguments)
        return original(self, *args, **kwargs)

    signature = inspect.signature(original)
    return handler


def _ends_after(original: Callable[..., Any], switch: Switch) -> Any:
    """End a call after it was logged synchronously. The logger has already ended it, unless it failed."""

    def handler(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        finally:
            if call := _call_of(self, switch):
                with guard:
                    _end(call, signature.bind(self, *args, **kwargs).arguments)

    signature = inspect.signature(original)
    return handler


def _calls_back(original: Callable[..., Any], switch: Switch) -> Any:
    def get_combined_callback_list(self: Any, *args: Any, **kwargs: Any) -> Any:
        callbacks = original(self, *args, **kwargs)
        call = _call_of(self, switch)
        if call is None or call.logger is None:
            return callbacks
        return [call.logger if is_autolog(callback) else callback for callback in callbacks]

    return get_combined_callback_list


def _streams(original: Callable[..., Any], switch: Switch) -> Any:
    def __next__(self: Any) -> Any:
        try:
            return original(self)
        except StopIteration:
            raise
        except BaseException as error:
            if call := _call_of(getattr(self, "logging_obj", None), switch):
                call.end(error=error)
            raise

    return __next__


def _async_streams(original: Callable[..., Any], switch: Switch) -> Any:
    async def __anext__(self: Any) -> Any:
        try:
            return await original(self)
        except StopAsyncIteration:
            raise
        except BaseException as error:
            if call := _call_of(getattr(self, "logging_obj", None), switch):
                call.end(error=error)
            raise

    return __anext__


def _returns(original: Callable[..., Any], switch: Switch) -> Any:
    def update_response_metadata(*args: Any, **kwargs: Any) -> Any:
        if call := _call_of(logging_of(args, kwargs), switch):
            with guard:
                call.returned(result_of(args, kwargs))
        return original(*args, **kwargs)

    logging_of, result_of = find_argument(original, "logging_obj"), find_argument(original, "result")
    return update_response_metadata


def _keeps_context(original: Callable[..., Any], switch: Switch) -> Any:
    """Run the async code of a sync call in the caller's context; in a notebook, LiteLLM runs it in another thread."""

    def run_async_function(async_function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(async_function, *args, **kwargs)
        context = copy_context()

        async def in_context(*args: Any, **kwargs: Any) -> Any:
            return await context.run(asyncio.ensure_future, async_function(*args, **kwargs))

        return original(in_context, *args, **kwargs)

    return run_async_function


_LOGGING = "litellm.litellm_core_utils.litellm_logging:Logging"
_RESPONSES = "litellm.responses.streaming_iterator"
_STREAM = "litellm.litellm_core_utils.streaming_handler:CustomStreamWrapper"

_REPLACEMENTS: dict[str, Replace] = {
    f"{_LOGGING}.__init__": _begins,
    f"{_LOGGING}.update_environment_variables": _begins_again,
    f"{_LOGGING}.success_handler": _ends_after,
    f"{_LOGGING}.failure_handler": _ends_after,
    f"{_LOGGING}.async_success_handler": _ends_before,
    f"{_LOGGING}.async_failure_handler": _ends_before,
    f"{_LOGGING}.handle_sync_success_callbacks_for_async_calls": _ends_before,
    f"{_LOGGING}.dispatch_success_handlers?": _ends_before,
    f"{_LOGGING}.dispatch_failure_handlers?": _ends_before,
    f"{_LOGGING}.get_combined_callback_list": _calls_back,
    "litellm.utils:update_response_metadata": _returns,
    "litellm.litellm_core_utils.fallback_utils:run_async_function": _keeps_context,
    # Newer versions do not run the router's calls in a thread.
    "litellm.router_python_core:run_async_function|litellm.router:run_async_function?": _keeps_context,
    f"{_STREAM}.__next__": _streams,
    f"{_STREAM}.__anext__": _async_streams,
    f"{_RESPONSES}:SyncResponsesAPIStreamingIterator.__next__": _streams,
    f"{_RESPONSES}:ResponsesAPIStreamingIterator.__anext__": _async_streams,
    **RUST_REPLACEMENTS,
}
"""Mainly of the ``Logging`` object, which every call has and which is notified of its start and end."""

_is_instrumented = False
"""Whether new calls are followed. If not, earlier calls may still be."""


def _changed(handles: tuple[Any, ...]) -> None:
    global _is_instrumented
    _is_instrumented = any(not isinstance(handle, LiteLLMCall) for handle in handles)


_patches = PatchSet(
    _REPLACEMENTS, "with mlflow.litellm.autolog() on, tokens of some calls may be counted twice", _changed
)


def _release(call: LiteLLMCall) -> None:
    # The garbage collector may have ended the call.
    _patches.remove(call, wait=False)


def _begin(logging: Any) -> None:
    call = LiteLLMCall(logging, _release)
    logging._agent_gateway_call = call
    model_call.set(call)


def _call_of(logging: Any, switch: Switch) -> LiteLLMCall | None:
    return getattr(logging, "_agent_gateway_call", None) if switch.is_on else None


def _end(call: LiteLLMCall, logged: dict[str, Any]) -> None:
    if "exception" in logged:
        call.end(error=logged["exception"])
        return
    result = logged.get("result")
    # A chunk of a stream is not the end, nor is the stream itself, which some versions log before it is read.
    if not isinstance(result, litellm.ModelResponseStream) and not hasattr(result, "__anext__"):
        call.end(result)
