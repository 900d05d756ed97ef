"""A LiteLLM call and its span from ``mlflow.litellm.autolog()``.

Autolog creates its span when LiteLLM logs the call, after the request: too late to be the request's parent, so the
mirror would be beside it and the tokens would be counted twice. Here the span is started with the first request to a
gateway and is the parent of the call's requests. Autolog's own code fills it in and ends it.
"""

import asyncio
import sys
import threading
import weakref
from collections.abc import Callable
from datetime import datetime
from types import FrameType
from typing import Any

import litellm
import mlflow.tracking

from agent_gateway_client._guard import Guard
from agent_gateway_client.active_span import ModelCall, active_trace_context, as_trace_context, model_call
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.w3c import TraceContext

guard = Guard("Could not follow a call of LiteLLM; its requests carry the active span", "litellm", "mlflow")

_begin_guard = Guard(
    "Could not begin the span of a LiteLLM call before its request; the mirror is beside the span of "
    "mlflow.litellm.autolog(), not below it",
    "litellm",
    "mlflow",
)

_CALLBACKS = ("callbacks", "success_callback", "failure_callback", "_async_success_callback", "_async_failure_callback")

followed_calls: "weakref.WeakSet[LiteLLMCall]" = weakref.WeakSet()
"""Calls with an open or ended span that LiteLLM may still log, which often happens after the span has ended."""


def is_autologged() -> bool:
    """Return whether ``mlflow.litellm.autolog()`` logs calls. After it was disabled, it may still log async calls.

    ``False`` if only mlflow-tracing is installed, because LiteLLM's logger needs the full MLflow package.
    """
    if not hasattr(mlflow.tracking, "MlflowClient"):
        return False
    # Not any(), which would create a generator for every call.
    for name in _CALLBACKS:
        for callback in getattr(litellm, name, ()):
            if is_autolog(callback):
                return True
    return False


def is_autolog(callback: Any) -> bool:
    """Return whether one of LiteLLM's callbacks is autolog's. An instance of a subclass is the user's own."""
    if isinstance(callback, str):
        return callback == "mlflow"
    module = sys.modules.get("litellm.integrations.mlflow")
    return module is not None and type(callback) is getattr(module, "MlflowLogger", None)


class LiteLLMCall(ModelCall):
    """A LiteLLM call; LiteLLM's ``Logging`` object refers to it.

    ========= =============================================== ============================== =========================
    State     Entered when                                    Parent of its requests         Left when
    ========= =============================================== ============================== =========================
    begun     LiteLLM has created the ``Logging`` object      the call's span, started then  a request goes to a gateway
    open      a request went to a gateway                     the call's span                it ends
    ended     LiteLLM logged the call, its request or stream  the parent without this call   LiteLLM retries after an
              was cancelled, its stream was dropped, or                                      error: begun
              it was abandoned
    ========= =============================================== ============================== =========================

    A call is abandoned when its ``Logging`` object is deleted, or when LiteLLM's code has ended without logging it, for
    example because the user cancelled it between two requests. The next request or call in the same task or thread
    detects that.

    A request belongs to a call if LiteLLM's code for that call is on the stack. Other requests in the same context are
    the user's: the reader of a stream sends requests too, and the context is not reset after a cancellation.

    Args:
        logging: LiteLLM's ``Logging`` object.
        forgotten: Called with this call when that object is deleted, if the call has had a span.

    Attributes:
        logger: Replaces autolog's logger for this call; ``None`` if it has never had a span.
        is_called_from_rust: Whether LiteLLM's Rust code for this call is running, which the stack does not show.
    """

    def __init__(self, logging: Any, forgotten: Callable[["LiteLLMCall"], None]) -> None:
        self.logger: Any = None
        self._forgotten = forgotten
        self._outer = _enclosing(model_call.get())
        self._began_in = active_trace_context()
        self._place = _place()
        self._lock = threading.RLock()
        self._logging: weakref.ref[Any] = weakref.ref(logging)
        self._start_time: datetime = logging.start_time
        self._is_stream = bool(logging.stream)
        self._span: Any = None
        self._has_ended = False
        self._has_failed = False
        self.is_called_from_rust = False

    @property
    def gateways(self) -> Gateways:
        """The gateways of the enclosing call."""
        return self._outer.gateways if self._outer else NO_GATEWAYS

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return this call's span, started now if necessary; ``active`` if the user has opened another span."""
        parent = self._outer.trace_context(active) if self._outer else active
        if not self.is_running() or active != self._began_in or (parent is not None and not parent.sampled):
            return parent
        with self._lock:
            if self._span is None:
                self._begin(parent)
            span = self.open_span()
        return (as_trace_context(span._span.get_span_context()) if span else None) or parent

    def is_running(self) -> bool:
        """Return whether LiteLLM's code for this call is on the stack. Ends an abandoned call."""
        logging = self._logging()
        if self._has_ended or logging is None:
            return False
        if self.is_called_from_rust or _is_on_stack(logging):
            return True
        # The reader of a stream will resume it. Another task or thread may still be running the call.
        if not self._is_stream and self._place == _place():
            self.end(error=asyncio.CancelledError())
        return False

    @property
    def is_forgotten(self) -> bool:
        """Whether LiteLLM can no longer log this call."""
        return self._logging() is None

    def returned(self, result: Any) -> None:
        """Handle LiteLLM's result. Ends the call with its stream, because LiteLLM does not log a partly read stream."""
        logging = self._logging()
        # A coroutine that returns the stream ends before the stream is read.
        if logging is None or not self._is_stream or not (hasattr(result, "__next__") or hasattr(result, "__anext__")):
            return
        # LiteLLM keeps a reference to the stream: in a cycle and, in older versions, until the next call. Without this,
        # a stream that the program has dropped would stay alive, and with it the span and MLflow's whole trace.
        for notes in (logging.model_call_details, *getattr(litellm, "error_logs", {}).values()):
            if notes.get("original_response") is result:
                notes["original_response"] = None
        weakref.finalize(result, self.end)

    def failed(self, error: BaseException) -> None:
        """End the call if a request was cancelled. LiteLLM logs errors, but not a cancellation."""
        if not isinstance(error, Exception) and self.is_running():
            self.end(error=error)

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """Fill in the span as autolog does, and end it. Never raises. Idempotent.

        Args:
            result: LiteLLM's result; for a stream, the complete response.
            error: The exception that LiteLLM raises.
        """
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
            self._has_failed = error is not None
            span, logging = self.open_span(), self._logging()
            if span is None:
                return
            with guard:
                if logging is not None:
                    self.logger.fill_in(logging, result, error)
                if span.end_time_ns is None:
                    span.end(status="ERROR" if error else "OK")
            self._span = None

    def begin_again(self) -> None:
        """Handle a retry or a fallback. After a failed attempt, the call gets a new span."""
        with self._lock:
            if self._has_failed:
                self._has_ended = self._has_failed = False
                self._start_time = datetime.now()

    def open_span(self) -> Any:
        """Return the span if it is open, else ``None``."""
        return self._span if self._span is not None and self._span.end_time_ns is None else None

    def _begin(self, parent: TraceContext | None) -> None:
        with _begin_guard:
            # Imported late, because it inherits from a private class of LiteLLM.
            from agent_gateway_client.litellm._logger import LiveLogger

            live, logging = LiveLogger(self.open_span), self._logging()
            self._span = live.begin(logging, parent, self._start_time)
            self.logger = live
            followed_calls.add(self)
            # Older versions keep the latest call's object here, which would keep its span open.
            for notes in getattr(litellm, "error_logs", {}).values():
                if notes.get("self") is logging:
                    del notes["self"]
            weakref.finalize(logging, self._forget)

    def _forget(self) -> None:
        self.end(error=asyncio.CancelledError())
        followed_calls.discard(self)
        self._forgotten(self)


def _enclosing(call: ModelCall | None) -> ModelCall | None:
    """Return the innermost call that is still running, which encloses a call that starts now."""
    while isinstance(call, LiteLLMCall) and not call.is_running():
        call = call._outer
    return call


def _place() -> tuple[int, int]:
    """Return the ids of the current thread and task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), id(task)


def _is_on_stack(logging: Any) -> bool:
    """Return whether a LiteLLM function on the stack has this ``Logging`` object."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name == "litellm" or name.startswith("litellm."):
            values = frame.f_locals
            if any(value is logging for value in values.values()):
                return True
            if getattr(values.get("self"), "logging_obj", None) is logging:
                return True
        frame = frame.f_back
    return False
