"""Which LangChain call of a model is being made here and now, and which span is its own.

A call is the current one while the model's own code runs, and no longer: not while a stream waits for its reader, and
not after an error or a cancellation.
"""

from contextvars import Token
from types import TracebackType
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler

from agent_gateway_client.active_span import ModelCall, active_trace_context, model_call
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.langchain._mlflow import guard, may_have_spans, mlflow_contexts, span_of_run
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

    Leaving it restores what was active before. MLflow makes the call's own span active for its reader too, in all
    synchronous code and, with ``run_tracer_inline=True``, in async code, where it often stays so: LangChain reports the
    end in another context, or, if the call was cancelled, not at all. Whatever the reader does next would be recorded
    as part of the call, and its tokens would not be counted.

    Args:
        gateways: Those of the handlers of the call's run.

    Attributes:
        gateways: The same; none after the call is over.
        manager: LangChain's run manager, which has a ``run_id`` and all ``handlers``. ``None`` where it is not known
            which run a request belongs to, and after the call is over.
    """

    # Attributes of the class are what most calls have, and cost nothing.
    gateways = NO_GATEWAYS
    manager: Any = None
    _outer: TraceContext | None = None
    _contexts: Any = None
    _inside: Any = None
    _outside: Any = None
    _token: Token[ModelCall | None] | None = None

    def __init__(self, gateways: Gateways) -> None:
        if gateways:
            self.gateways = gateways
        if may_have_spans():
            # A span that is active later is the run's own, or one that the user opened.
            self._outer = active_trace_context()
            self._contexts = mlflow_contexts()

    def end(self) -> None:
        """Deactivate this call. Copied contexts may still refer to it; it must not affect requests sent from them."""
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
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
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
