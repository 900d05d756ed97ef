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
from agent_gateway_client.gateways import NO_GATEWAYS
from agent_gateway_client.http._known import instrumented_gateways
from agent_gateway_client.langchain._mlflow import guard, mlflow_contexts, span_of_run
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

    What most calls do not need is in the class: a call whose run is not followed costs little more than a context
    variable.

    Attributes:
        gateways: Those of the handlers of the call's run; none before the run has begun and after the call is over.
        has_begun: Whether it is known which handlers the run has.
        is_idle: Whether no gateway is known for the run, and no other call is around this one.
        manager: LangChain's run manager, which has a ``run_id`` and all ``handlers``. ``None`` where no run is known to
            be the one that a request belongs to.
    """

    gateways = NO_GATEWAYS
    has_begun = False
    is_idle = False
    manager: Any = None
    _outer: TraceContext | None = None
    _contexts: Any = None
    _inside: Any = None
    _outside: Any = None
    _token: Token[ModelCall | None] | None = None

    def begin(self, handlers: Sequence[Any]) -> None:
        """Set the call's gateways, before its run begins. Only the first run that begins in a call is the call's.

        Args:
            handlers: LangChain's callback handlers of the run.
        """
        self.has_begun = True
        is_followed = instrumented_gateways() is not NO_GATEWAYS
        for handler in handlers:
            if isinstance(handler, GatewaysHandler) and handler.gateways:
                self.gateways = self.gateways | handler.gateways if self.gateways else handler.gateways
                is_followed = True
        if is_followed:
            # A span that is active later is the run's own, or one that the user opened.
            self._outer = active_trace_context()
            self._contexts = mlflow_contexts()
            if self._token is not None and self._contexts is not None:
                self._outside = self._contexts.get_current()
        else:
            self.is_idle = self._token is not None and self._token.old_value in (None, Token.MISSING)

    def end(self) -> None:
        """Be nothing from now on, wherever the context in which this was the current call has been copied to."""
        self.has_begun = True
        self.manager = None
        self.gateways = NO_GATEWAYS

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return the run's own span, or ``active`` where there is none or the user has opened another one since."""
        own = span_of_run(self.manager) if self.manager else None
        return own if own and active in (own, self._outer) else active

    def __enter__(self) -> "LangChainCall":
        self._token = model_call.set(self)
        if self._contexts is not None:
            with guard:
                self._outside = self._contexts.get_current()
                if self._inside is not None:
                    self._contexts.attach(self._inside)
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
        if self._contexts is not None:
            with guard:
                inside = self._contexts.get_current()
                if inside is not self._outside:
                    self._inside = inside
                    self._contexts.attach(self._outside)
