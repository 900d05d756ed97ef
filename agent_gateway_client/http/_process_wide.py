"""Process-wide: every httpx, httpx2 and aiohttp client puts the trace context on its requests to gateways.

Each of the three has one function through which all requests go, for each retry and each hop of a redirect. These are
replaced while at least one :func:`instrument` is in force. A library that is not installed is left out; one that is
installed is imported, so that it does not matter what the program imports later.
"""

from types import TracebackType

from agent_gateway_client._patching import PatchSet
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE, Gateways
from agent_gateway_client.http import _aiohttp, _httpx, _known

_patches = PatchSet(
    {**_httpx.REPLACEMENTS, **_aiohttp.REPLACEMENTS},
    "its requests are sent without trace context",
    lambda handles: _known.set_process_gateways(Gateways(url for handle in handles for url in handle.gateways)),
)


class Instrumentation:
    """What :func:`instrument` has switched on. As a context manager, it is switched off at the end.

    Attributes:
        gateways: Those that were named for this one.
    """

    def __init__(self, gateways: Gateways, *, for_adapter: bool = False) -> None:
        """Switch it on.

        Args:
            gateways: May be none, for an adapter whose model calls bring their own.
            for_adapter: Whether it belongs to a framework's adapter, and :func:`uninstrument` leaves it alone.
        """
        self.gateways = gateways
        self.for_adapter = for_adapter
        _patches.add(self)

    def uninstrument(self, *, wait: bool = True) -> None:
        """Switch this one off; others stay in force. The second time does nothing.

        Args:
            wait: As in :meth:`PatchSet.remove`.
        """
        _patches.remove(self, wait=wait)

    def __enter__(self) -> "Instrumentation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstrument()


def instrument(*gateways: str) -> Instrumentation:
    """Make every httpx, httpx2 and aiohttp client of this process put the trace context on requests to gateways.

    For frameworks that make their HTTP clients themselves: nothing else has to be changed. The context is that of the
    innermost active span at the time of the request; a ``traceparent`` that the request already has stays. Calling it
    again adds gateways, until its own handle is switched off.

    Args:
        *gateways: ``scheme://host[:port][/prefix]`` each. By default those in ``AGENT_GATEWAY_URLS``.

    Returns:
        A handle that undoes this call, and a context manager that does so at its end.

    Raises:
        ConfigurationError: No gateway is named, or a name is no URL.

    Example:
        >>> from agent_gateway_client import instrument
        >>> with instrument("http://localhost:5000/gateway"):
        ...     pass  # Requests of any client to http://localhost:5000/gateway/... carry the trace context.
    """
    return Instrumentation(gateways_for_process(gateways, "instrument"))


def uninstrument() -> None:
    """Undo every :func:`instrument`. The adapters of frameworks have an undo of their own."""
    for handle in _patches.handles:
        if not handle.for_adapter:
            handle.uninstrument()


def gateways_for_process(gateways: tuple[str, ...], function: str) -> Gateways:
    """Read the gateways that a process-wide function was given, or those of the environment.

    Args:
        gateways: What it was given.
        function: Its name, for the error.

    Raises:
        ConfigurationError: No gateway is named, or a name is no URL.
    """
    known = Gateways(gateways) if gateways else Gateways.from_environment()
    if not known:
        raise ConfigurationError(
            f"No gateway is named. Give its URL, like {function}('http://localhost:5000/gateway'), or set "
            f"{GATEWAY_URLS_VARIABLE}."
        )
    return known
