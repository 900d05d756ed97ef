"""The callback handler, and the patches that are on while one is open."""

import threading
from collections.abc import Iterable
from types import TracebackType
from weakref import WeakSet

from agent_gateway_client._patching import Patch
from agent_gateway_client.gateways import NO_GATEWAYS
from agent_gateway_client.http._process_wide import Instrumentation, gateways_for_process
from agent_gateway_client.langchain._calls import GatewaysHandler
from agent_gateway_client.langchain._methods import patches

_lock = threading.Lock()
_open: WeakSet["GatewayCallbackHandler"] = WeakSet()
_patches: list[Patch] = []
_http: Instrumentation | None = None


class GatewayCallbackHandler(GatewaysHandler):
    """Makes the calls of LangChain models put the trace context on every request that they send to a gateway.

    Give it to a run with ``config={"callbacks": [handler]}``, which covers everything below that run, or to a model
    with ``ChatOpenAI(..., callbacks=[handler])``. A request names the span that ``mlflow.langchain.autolog()`` makes
    for the call, where there is one and no span has been opened inside the call; the innermost active span otherwise.
    The handler makes no spans.

    Embedding models have no callbacks; for them there is :func:`agent_gateway_client.instrument`.

    The first handler replaces methods of LangChain's base classes and of httpx, httpx2 and aiohttp, which do nothing
    for any run without a handler. They are put back when the last handler is closed. A handler that is never closed
    costs nothing more than that, so there is no need to close it.

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
            ConfigurationError: No gateway is named, or a name is no URL.
        """
        super().__init__()
        self.gateways = gateways_for_process(urls, "GatewayCallbackHandler", gateways)
        with _lock:
            _open.add(self)
            _put_on()

    def close(self) -> None:
        """Do nothing any more. The last handler to be closed puts back every method that was replaced."""
        self.gateways = NO_GATEWAYS
        with _lock:
            _open.discard(self)
            if not _open:
                _take_off()

    def __enter__(self) -> "GatewayCallbackHandler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _put_on() -> None:
    global _http
    if _http is None:
        # It names no gateways: those of a run's handlers come with the run.
        _http = Instrumentation(NO_GATEWAYS, for_adapter=True)
        _patches.extend(patches())
    for patch in _patches:
        patch.put_on()


def _take_off() -> None:
    global _http
    while _patches:
        _patches.pop().take_off()
    if _http is not None:
        _http.uninstrument()
        _http = None
