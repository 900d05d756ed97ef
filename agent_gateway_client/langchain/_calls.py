"""Which LangChain call of a model is being made here and now, and which span is its own.

A call is the current one while the model's own code runs, and no longer: not while a stream waits for its reader, and
not after an error or a cancellation.
"""

from collections.abc import Sequence
from contextvars import Token
from types import TracebackType
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler

from agent_gateway_client.active_span import ModelCall, active_trace_context, model_call
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.http._known import instrumented_gateways
from agent_gateway_client.langchain._mlflow import activate, active_context, span_of_run
from agent_gateway_client.w3c import TraceContext


class GatewaysHandler(BaseCallbackHandler):
    """A handler that says where the runs it is given to may send trace context.

    LangChain hands it on to every run below the one it was given to; that is all it is for. It ignores every event. To
    be told of them in the task that sends the request it would have to be ``run_inline``, and beside a handler that is
    so, LangChain does not tell the others that a text model's run starts.

    Attributes:
        gateways: No gateways once the handler is closed.
    """

    gateways = NO_GATEWAYS

    @property
    def ignore_llm(self) -> bool:
        """Always."""
        return True

    ignore_agent = ignore_chain = ignore_chat_model = ignore_custom_event = ignore_llm
    ignore_retriever = ignore_retry = ignore_llm


class LangChainCall(ModelCall):
    """A call of a model, as a context manager: within it, it is the current one.

    Leaving it brings back what was active before. MLflow makes the call's own span active for its reader too, in all
    synchronous code and, with ``run_tracer_inline=True``, in async code, where it often stays so: LangChain tells of
    the end in another context, or, when the call was cancelled, not at all. What the reader does next would be recorded
    as done inside the call, and its tokens not be counted.

    Attributes:
        gateways: Those of the handlers of the call's run; none before the run has begun and after the call is over.
        has_begun: Whether it is known which run this is.
    """

    __slots__ = ("_inside", "_manager", "_outer", "_outside", "_token", "gateways", "has_begun")

    gateways: Gateways

    def __init__(self) -> None:
        self.gateways = NO_GATEWAYS
        self.has_begun = False
        self._manager: Any = None
        self._outer: TraceContext | None = None
        self._inside: Any = None
        self._outside: Any = None
        self._token: Token[ModelCall | None] | None = None

    def begin(self, handlers: Sequence[Any]) -> None:
        """Set the call's gateways, before its run begins. Only the first run that begins in a call is the call's.

        Args:
            handlers: LangChain's callback handlers of the run.
        """
        self.has_begun = True
        for handler in handlers:
            if isinstance(handler, GatewaysHandler):
                self.gateways = self.gateways | handler.gateways if self.gateways else handler.gateways
        if self.gateways or instrumented_gateways():
            # A span that is active later is the run's own, or one that the user opened.
            self._outer = active_trace_context()

    def belongs_to(self, managers: Sequence[Any]) -> None:
        """Say which run it is.

        Args:
            managers: LangChain's run managers, which have a ``run_id`` and all ``handlers``. With more than one, no run
                is known to be the one that a request belongs to.
        """
        self._manager = managers[0] if len(managers) == 1 else None

    def end(self) -> None:
        """Be nothing from now on, wherever the context in which this was the current call has been copied to."""
        self.has_begun = True
        self._manager = None
        self.gateways = NO_GATEWAYS

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return the run's own span, or ``active`` where there is none or the user has opened another one since."""
        own = span_of_run(self._manager) if self._manager else None
        return own if own and active in (own, self._outer) else active

    def __enter__(self) -> "LangChainCall":
        self._token = model_call.set(self)
        # Of a run that has none of our handlers no more is looked at.
        if self.gateways or not self.has_begun:
            self._outside = active_context()
            if self._inside is not None:
                activate(self._inside)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is None:
            return
        try:
            model_call.reset(self._token)
        except ValueError:
            # Left by the garbage collector, which closes what nobody finished, in a context that never entered.
            return
        if self.gateways and self._outside is not None:
            inside = active_context()
            if inside is not self._outside:
                self._inside = inside
                activate(self._outside)
