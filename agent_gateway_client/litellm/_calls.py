"""A call of LiteLLM, and the span that ``mlflow.litellm.autolog()`` keeps of it.

Autolog makes its span when LiteLLM logs the call, after the request is over: a request cannot name it, and the mirror
ends up beside it, with the same tokens once more. Here the span is begun with the first request to a gateway, is what
the requests name, and is handed to autolog's own code to be filled in and ended.
"""

import threading
import weakref
from collections.abc import Callable
from datetime import datetime
from typing import Any

import litellm
import mlflow.tracking
from litellm.integrations.mlflow import MlflowLogger

from agent_gateway_client._guard import Guard
from agent_gateway_client.active_span import ModelCall, active_trace_context, as_trace_context, model_call
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.litellm._logger import LiveLogger
from agent_gateway_client.w3c import TraceContext

_guard = Guard("Could not follow a call of LiteLLM; its requests carry the active span", "litellm")

_begin_guard = Guard(
    "Could not begin the span of a LiteLLM call before its request; the mirror is beside the span of "
    "mlflow.litellm.autolog(), not below it",
    "litellm",
)

_CALLBACKS = ("callbacks", "success_callback", "failure_callback", "_async_success_callback", "_async_failure_callback")


def is_autologged() -> bool:
    """Tell whether ``mlflow.litellm.autolog()`` logs calls; async ones it may still log when it was switched off.

    Where only the package mlflow-tracing is installed it does not, as LiteLLM's logger stands on what that leaves out.
    """
    if not hasattr(mlflow.tracking, "MlflowClient"):
        return False
    return any(is_autolog(callback) for name in _CALLBACKS for callback in getattr(litellm, name, ()))


def is_autolog(callback: Any) -> bool:
    """Tell whether one of LiteLLM's callbacks is autolog's."""
    return callback == "mlflow" or isinstance(callback, MlflowLogger)


def guarded(function: Callable[..., None], *args: Any) -> None:
    """Call a function of ours; whatever goes wrong in it, the user's call goes on."""
    with _guard:
        function(*args)


class LiteLLMCall(ModelCall):
    """A call of LiteLLM, from its beginning until it is logged, as LiteLLM's ``Logging`` object knows it.

    Its requests name its span as long as none of them is answered. What is sent after that, in the same context, may
    be the user's own: the reader of a stream makes requests too. A call that has ended is as if it were not there.

    Attributes:
        logger: Takes the place of autolog's logger for this call, if it has a span.
        has_span: Whether a span was begun for it, even if it has ended.
    """

    def __init__(self, logging: Any) -> None:
        outer = model_call.get()
        while isinstance(outer, LiteLLMCall) and outer._logging is None:
            outer = outer._outer
        self.has_span = False
        self.logger = LiveLogger(self._open_span)
        self._outer: ModelCall | None = outer
        self._began_in = active_trace_context()
        self._lock = threading.RLock()
        self._logging: Any = logging
        self._start_time: datetime = logging.start_time
        self._span: Any = None
        self._is_named = True
        self._has_failed = False

    @property
    def gateways(self) -> Gateways:
        """Those of the call that this one is a part of."""
        return self._outer.gateways if self._outer else NO_GATEWAYS

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return this call's span, which is begun now if it has not; ``active`` where the user has opened another."""
        parent = self._outer.trace_context(active) if self._outer else active
        if not self._is_named or active != self._began_in or (parent is not None and not parent.sampled):
            return parent
        with self._lock:
            if self._span is None and self._logging is not None:
                self._span = self._begin(parent)
                self.has_span = self._span is not None
            span = self._open_span()
        return (as_trace_context(span._span.get_span_context()) if span else None) or parent

    def named_once(self) -> None:
        """No request after this one names the span."""
        self._is_named = False

    def answered(self, response: Any) -> None:
        """Take note of the response to a request that was sent within this call."""
        if self._span is not None and response.status_code < 300:
            self.named_once()

    def returned(self, result: Any) -> None:
        """Take note of what LiteLLM returns. It does not log a stream that is not read to its end."""
        logging = self._logging
        if logging is None or not logging.stream:
            return
        # LiteLLM notes the stream, in a circle and, in older versions, for as long as there is no other call: one that
        # nobody has any more would be kept, and with it the span, and with that MLflow's whole trace.
        for notes in (logging.model_call_details, *getattr(litellm, "error_logs", {}).values()):
            if notes.get("original_response") is result:
                notes["original_response"] = None
        weakref.finalize(result, self.end)

    def failed(self, error: BaseException) -> None:
        """Take note that a request was given up. LiteLLM logs errors, and does not see a cancellation."""
        if not isinstance(error, Exception):
            self.end(error=error)

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """End the span, filled in as autolog does it. Never raises; the second time does nothing.

        Args:
            result: What LiteLLM returns, or for a stream the whole response.
            error: What it raises.
        """
        with self._lock:
            if self._logging is None:
                return
            if span := self._open_span():
                with _guard:
                    self.logger.fill_in(self._logging, result, error)
                    if span.end_time_ns is None:
                        span.end(status="ERROR" if error else "OK")
            self._span = self._logging = None
            self._is_named = False
            self._has_failed = error is not None

    def begin_again(self, logging: Any) -> None:
        """Take note of another attempt, a retry or a fallback: after one that has failed it has a span of its own."""
        with self._lock:
            if self._has_failed and self._logging is None:
                self._logging = logging
                self._start_time = datetime.now()
                self._is_named = True

    def _open_span(self) -> Any:
        return self._span if self._span is not None and self._span.end_time_ns is None else None

    def _begin(self, parent: TraceContext | None) -> Any:
        with _begin_guard:
            return self.logger.begin(self._logging, parent, self._start_time)
        return None
