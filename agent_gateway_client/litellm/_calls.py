"""A call of LiteLLM, and the span that ``mlflow.litellm.autolog()`` makes of it.

Autolog makes its span when LiteLLM logs the call, after the request is over: a request cannot carry it, and the mirror
ends up beside it, with the same tokens once more. Here the span is begun with the first request to a gateway, is the
parent that the requests carry, and autolog's own code fills it in and ends it.
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
"""The calls that have or had a span and that LiteLLM may still log, which it often does after the span has ended."""


def is_autologged() -> bool:
    """Tell whether ``mlflow.litellm.autolog()`` logs calls; async ones it may still log when it was switched off.

    Where only the package mlflow-tracing is installed it does not, as LiteLLM's logger needs what that leaves out.
    """
    if not hasattr(mlflow.tracking, "MlflowClient"):
        return False
    return any(is_autolog(callback) for name in _CALLBACKS for callback in getattr(litellm, name, ()))


def is_autolog(callback: Any) -> bool:
    """Tell whether one of LiteLLM's callbacks is autolog's. A subclass of its class is the user's."""
    if isinstance(callback, str):
        return callback == "mlflow"
    module = sys.modules.get("litellm.integrations.mlflow")
    return module is not None and type(callback) is getattr(module, "MlflowLogger", None)


class LiteLLMCall(ModelCall):
    """A call of LiteLLM, which LiteLLM keeps in its ``Logging`` object.

    ========= =============================================== ============================== =========================
    State     Entered when                                    Its requests carry             Left when
    ========= =============================================== ============================== =========================
    begun     LiteLLM has made the ``Logging`` object         the call's span, begun then    a request goes to a gateway
    open      a request went to a gateway                     the call's span                it ends
    ended     LiteLLM logged the call, its request or stream  what they would without it     LiteLLM tries again after
              was cancelled, its stream was dropped, or                                      an error: begun
              it was abandoned
    ========= =============================================== ============================== =========================

    A call is abandoned when its ``Logging`` object is gone, or when LiteLLM's code has left it without logging it: the
    user cancelled it between two requests, for one. It is found out by the next request or call in the same task or
    thread.

    A request belongs to a call when LiteLLM's code for that call is on the stack. What else is sent in the same context
    is the user's: the reader of a stream makes requests too, and nobody resets the context after a cancellation.

    Args:
        logging: LiteLLM's ``Logging`` object.
        forgotten: Called with the call when that object is gone, if the call ever had a span.

    Attributes:
        logger: Takes the place of autolog's logger for this call; ``None`` if it never had a span.
        is_called_from_rust: Whether LiteLLM's Rust code for this call runs now, which the stack does not show.
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
        """Those of the call that this one is a part of."""
        return self._outer.gateways if self._outer else NO_GATEWAYS

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return this call's span, which is begun now if it has not; ``active`` where the user has opened another."""
        parent = self._outer.trace_context(active) if self._outer else active
        if not self.is_running() or active != self._began_in or (parent is not None and not parent.sampled):
            return parent
        with self._lock:
            if self._span is None:
                self._begin(parent)
            span = self.open_span()
        return (as_trace_context(span._span.get_span_context()) if span else None) or parent

    def is_running(self) -> bool:
        """Tell whether LiteLLM's code for this call is on the stack. A call that it has left for good is ended."""
        logging = self._logging()
        if self._has_ended or logging is None:
            return False
        if self.is_called_from_rust or _is_on_stack(logging):
            return True
        # The reader of a stream comes back. Another task or thread may still be at it.
        if not self._is_stream and self._place == _place():
            self.end(error=asyncio.CancelledError())
        return False

    @property
    def is_forgotten(self) -> bool:
        """Whether LiteLLM will not log it any more."""
        return self._logging() is None

    def returned(self, result: Any) -> None:
        """Take note of what LiteLLM returns. It does not log a stream that is not read to its end."""
        logging = self._logging()
        # A coroutine that returns the stream is over before the stream is read.
        if logging is None or not self._is_stream or not (hasattr(result, "__next__") or hasattr(result, "__anext__")):
            return
        # LiteLLM keeps a reference to the stream: in a cycle and, in older versions, until the next call. A stream that
        # the program has dropped would stay alive, and with it the span and MLflow's whole trace.
        for notes in (logging.model_call_details, *getattr(litellm, "error_logs", {}).values()):
            if notes.get("original_response") is result:
                notes["original_response"] = None
        weakref.finalize(result, self.end)

    def failed(self, error: BaseException) -> None:
        """Take note that a request was given up. LiteLLM logs errors, and does not see a cancellation."""
        if not isinstance(error, Exception) and self.is_running():
            self.end(error=error)

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """End the span, filled in as autolog does it. Never raises; the second time does nothing.

        Args:
            result: What LiteLLM returns, or for a stream the whole response.
            error: What it raises.
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
        """Take note of another attempt, a retry or a fallback. After a failed one it gets a new span."""
        with self._lock:
            if self._has_failed:
                self._has_ended = self._has_failed = False
                self._start_time = datetime.now()

    def open_span(self) -> Any:
        """Return the span while it is open, else ``None``."""
        return self._span if self._span is not None and self._span.end_time_ns is None else None

    def _begin(self, parent: TraceContext | None) -> None:
        with _begin_guard:
            # It builds on a private class of LiteLLM's.
            from agent_gateway_client.litellm._logger import LiveLogger

            live, logging = LiveLogger(self.open_span), self._logging()
            self._span = live.begin(logging, parent, self._start_time)
            self.logger = live
            followed_calls.add(self)
            # Older versions keep the object of the latest call here, and would keep its span open with it.
            for notes in getattr(litellm, "error_logs", {}).values():
                if notes.get("self") is logging:
                    del notes["self"]
            weakref.finalize(logging, self._forget)

    def _forget(self) -> None:
        self.end(error=asyncio.CancelledError())
        followed_calls.discard(self)
        self._forgotten(self)


def _enclosing(call: ModelCall | None) -> ModelCall | None:
    """Return the innermost call that is still running, of which a call that begins now is a part."""
    while isinstance(call, LiteLLMCall) and not call.is_running():
        call = call._outer
    return call


def _place() -> tuple[int, int]:
    """Return the thread and the task that run now."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), id(task)


def _is_on_stack(logging: Any) -> bool:
    """Tell whether a function of LiteLLM that runs now works with this ``Logging`` object."""
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
