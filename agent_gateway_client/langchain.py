"""LangChain and LangGraph: a callback handler."""

import threading
from types import TracebackType
from weakref import WeakSet

from agent_gateway_client._install import install_command
from agent_gateway_client._patch import Patch
from agent_gateway_client.errors import ConfigurationError, MissingDependencyError
from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE, Gateways

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    raise MissingDependencyError(
        f"GatewayCallbackHandler needs the package langchain-core: {install_command('langchain')}"
    ) from None

from agent_gateway_client._langchain_calls import NO_GATEWAYS, GatewaysHandler
from agent_gateway_client._langchain_methods import patches
from agent_gateway_client.instrumentation import Instrumentation

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

    def __init__(self, *gateways: str) -> None:
        """Make a handler.

        Args:
            *gateways: ``scheme://host[:port][/prefix]`` each. By default those in ``AGENT_GATEWAY_URLS``.

        Raises:
            ConfigurationError: No gateway is named, or a name is no URL.
        """
        super().__init__()
        self.gateways = Gateways(gateways) if gateways else Gateways.from_environment()
        if not self.gateways:
            raise ConfigurationError(
                "No gateway is named: a handler is not told the URLs of the models whose runs it is given to. Write "
                f"GatewayCallbackHandler('http://localhost:5000/gateway'), or set {GATEWAY_URLS_VARIABLE}."
            )
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
