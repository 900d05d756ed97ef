"""A LangChain model call and its span.

A call is current only while the model's own code runs: not while a stream waits for its reader, and not after an error
or a cancellation.
"""

from contextvars import Token
from types import TracebackType
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler

from agent_gateway_client._langchain_runs._mlflow import guard, may_have_spans, mlflow_contexts, span_of_run
from agent_gateway_client.active_span import ModelCall, active_trace_context, model_call
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.w3c import TraceContext


class GatewaysHandler(BaseCallbackHandler):
    """A handler that holds the gateways of the runs that have it.

    LangChain passes it to every run below the first one. It ignores all events: to get them in the task that sends the
    request, it would need ``run_inline``, and if one handler is inline, LangChain does not notify the others of the
    start of a text model's run.

    Attributes:
        gateways: The gateways; empty after the handler is closed.
    """

    gateways = NO_GATEWAYS

    # Values, not properties: LangChain reads one for each event.
    ignore_llm = ignore_agent = ignore_chain = ignore_chat_model = ignore_custom_event = True
    ignore_retriever = ignore_retry = True


class LangChainCall(ModelCall):
    """A model call. As a context manager, it makes itself the current call.

    On exit, it restores the span that was active before. MLflow also activates the call's span for the reader of a
    stream, in all synchronous code and, with ``run_tracer_inline=True``, in async code. There the span often stays
    active, because LangChain reports the end in another context, or not at all if the call was cancelled. Everything
    that the reader does next would be recorded as part of the call, and its tokens would not be counted.

    Args:
        gateways: The gateways of the run's handlers.

    Attributes:
        gateways: The same; empty after the call has ended.
        manager: LangChain's run manager, which has a ``run_id`` and all ``handlers``. ``None`` if the run of a request
            is not known, and after the call has ended.
    """

    # Class attributes hold the values of most calls, which then need no instance attributes.
    gateways = NO_GATEWAYS
    manager: Any = None
    _may_have_span = False
    _outer: TraceContext | None = None
    _contexts: Any = None
    _inside: Any = None
    _outside: Any = None
    _token: Token[ModelCall | None] | None = None

    def __init__(self, gateways: Gateways) -> None:
        if gateways is not NO_GATEWAYS:
            self.gateways = gateways
        if may_have_spans():
            self._may_have_span = True
            # A different span that is active later is the run's own, or one that the user has opened.
            self._outer = active_trace_context()
            self._contexts = mlflow_contexts()

    def end(self) -> None:
        """Deactivate this call. Copied contexts may still refer to it; it must not affect requests sent from them."""
        self.manager = None
        self.gateways = NO_GATEWAYS

    def trace_context(self, active: TraceContext | None) -> TraceContext | None:
        """Return the run's own span; ``active`` if it has none or the user has opened another span inside it."""
        own = span_of_run(self.manager) if self._may_have_span and self.manager else None
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
            # The garbage collector has closed an unfinished generator in a different context.
            return
        if self._contexts is not None:
            with guard:
                inside = self._contexts.get_current()
                if inside is not self._outside:
                    self._inside = inside
                    self._contexts.attach(self._outside)
