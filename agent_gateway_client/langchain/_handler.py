"""The callback handler. LangChain is patched while at least one handler is open."""

import sys
from collections.abc import Iterable
from types import TracebackType
from weakref import finalize

from agent_gateway_client._langchain_runs._calls import GatewaysHandler
from agent_gateway_client._langchain_runs._methods import patches
from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.gateways import NO_GATEWAYS
from agent_gateway_client.http._process_wide import Instrumentation, gateways_for_process


class _LangChainInstrumentation(Instrumentation):
    """The patches that one handler holds. It has no gateways, because a run uses those of its handlers."""

    def __init__(self) -> None:
        super().__init__(NO_GATEWAYS, for_adapter=True, is_counted=False)
        patches.add(self)

    def uninstrument(self, *, wait: bool = True) -> None:
        patches.remove(self, wait=wait)
        super().uninstrument(wait=wait)


class _Ignored:
    """True, as LangChain shall skip the handler's events. Reports a class or a closed handler that gets into a run.

    An open handler keeps the value in its own attributes, so that LangChain reads it without a call.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, handler: "GatewayCallbackHandler | None", owner: type) -> bool:
        if handler is None:
            # Not for help() and others that look at the class.
            if sys._getframe(1).f_globals.get("__name__", "").startswith("langchain_core."):
                warn_once(
                    "langchain.class",
                    "LangChain got the class GatewayCallbackHandler as a callback and ignores it, so no trace context "
                    "is sent. Pass an instance: GatewayCallbackHandler().",
                )
        elif handler.gateways is NO_GATEWAYS:
            logger.debug("A closed GatewayCallbackHandler was passed to a model call; it adds no headers.")
        else:
            vars(handler)[self._name] = True
        return True


class GatewayCallbackHandler(GatewaysHandler):
    """Makes LangChain model calls add the trace context to every request that they send to a gateway.

    Pass it to a run with ``config={"callbacks": [handler]}``, which covers everything below that run, or to a model
    with ``ChatOpenAI(..., callbacks=[handler])``. The parent of a request is the span that
    ``mlflow.langchain.autolog()`` creates for the call. If there is none, or another span was opened inside the call,
    the parent is the innermost active span. The handler creates no spans.

    Embedding models have no callbacks; use :func:`agent_gateway_client.instrument` for them.

    The first handler replaces methods of LangChain's base classes and of the HTTP clients. They are restored when the
    last handler is closed or garbage-collected, so closing a handler is optional.

    Example:
        handler = GatewayCallbackHandler("http://localhost:5000/gateway")
        agent.invoke({"messages": [("user", "Hello")]}, config={"callbacks": [handler]})
    """

    ignore_llm = _Ignored()
    ignore_chat_model = _Ignored()

    def __init__(self, *urls: str | Iterable[str], gateways: Iterable[str] | None = None) -> None:
        """Create a handler.

        Args:
            *urls: The gateways, ``scheme://host[:port][/prefix]`` each, as separate arguments or in a list. By default
                those in ``AGENT_GATEWAY_URLS``.
            gateways: More gateways, in the form that the other functions accept.

        Raises:
            ConfigurationError: No gateway is configured, or a value is not a URL.
        """
        super().__init__()
        self.gateways = gateways_for_process(urls, "GatewayCallbackHandler", gateways)
        self._instrumentation = _LangChainInstrumentation()
        # The garbage collector must not wait for a lock.
        finalize(self, self._instrumentation.uninstrument, wait=False).atexit = False

    def close(self) -> None:
        """Stop adding headers. Closing the last handler restores all patched methods."""
        self.gateways = NO_GATEWAYS
        for name in ("ignore_llm", "ignore_chat_model"):
            # False is a subclass's own.
            if vars(self).get(name) is True:
                del vars(self)[name]
        self._instrumentation.uninstrument()

    def __enter__(self) -> "GatewayCallbackHandler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
