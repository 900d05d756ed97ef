"""The callback handler, and the patches that are on while one is open."""

from collections.abc import Iterable
from types import TracebackType
from weakref import finalize

from agent_gateway_client.gateways import NO_GATEWAYS
from agent_gateway_client.http._process_wide import Instrumentation, gateways_for_process
from agent_gateway_client.langchain._calls import GatewaysHandler
from agent_gateway_client.langchain._methods import patches


class _LangChainInstrumentation(Instrumentation):
    """The patches that one handler holds. It names no gateways: a run takes those of its handlers."""

    def __init__(self) -> None:
        super().__init__(NO_GATEWAYS, for_adapter=True, is_counted=False)
        patches.add(self)

    def uninstrument(self, *, wait: bool = True) -> None:
        patches.remove(self, wait=wait)
        super().uninstrument(wait=wait)


class GatewayCallbackHandler(GatewaysHandler):
    """Makes the calls of LangChain models put the trace context on every request that they send to a gateway.

    Give it to a run with ``config={"callbacks": [handler]}``, which covers everything below that run, or to a model
    with ``ChatOpenAI(..., callbacks=[handler])``. A request names the span that ``mlflow.langchain.autolog()`` makes
    for the call, where there is one and no span has been opened inside the call; the innermost active span otherwise.
    The handler makes no spans.

    Embedding models have no callbacks; for them there is :func:`agent_gateway_client.instrument`.

    The first handler replaces methods of LangChain's base classes and of the HTTP clients. They are restored when the
    last handler is closed or no longer used by anything, so there is no need to close one.

    Example:
        handler = GatewayCallbackHandler("http://localhost:5000/gateway")
        agent.invoke({"messages": [("user", "Hello")]}, config={"callbacks": [handler]})
    """

    def __init__(self, *urls: str | Iterable[str], gateways: Iterable[str] | None = None) -> None:
        """Make a handler.

        Args:
            *urls: The gateways, ``scheme://host[:port][/prefix]`` each, one by one or in a list. By default those in
                ``AGENT_GATEWAY_URLS``.
            gateways: More of them, as the other functions take them.

        Raises:
            ConfigurationError: No gateway is named, or a name is not a URL.
        """
        super().__init__()
        self.gateways = gateways_for_process(urls, "GatewayCallbackHandler", gateways)
        self._instrumentation = _LangChainInstrumentation()
        # The garbage collector must not wait for a lock.
        finalize(self, self._instrumentation.uninstrument, wait=False).atexit = False

    def close(self) -> None:
        """Stop adding headers. Closing the last handler restores all patched methods."""
        self.gateways = NO_GATEWAYS
        self._instrumentation.uninstrument()

    def __enter__(self) -> "GatewayCallbackHandler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
