"""Process-wide: every client of a library below puts the trace context on its requests to gateways.

httpx, httpx2, aiohttp, urllib3 (and with it requests and boto3) and websockets. Each has one function through which all
requests go, for each retry and each hop of a redirect. These are replaced while at least one :func:`instrument` is in
force. A library that is not installed is left out; one that is installed is imported, so that it does not matter what
the program imports later. LangChain's runs are followed too, once the program has imported its models.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple

from agent_gateway_client._patching import PatchSet
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE, NO_GATEWAYS, Gateways, flatten
from agent_gateway_client.http import _aiohttp, _httpx, _known, _notes, _urllib3, _websockets
from agent_gateway_client.http._langchain_runs import runs
from agent_gateway_client.http._opentelemetry import instrumentation_is_loaded


def _changed(handles: tuple[Any, ...]) -> None:
    gateways = Gateways(url for handle in handles for url in handle.gateways)
    _known.set_process_gateways(gateways)
    runs.follow(bool(gateways) or (bool(handles) and _notes.assumed is not None))


_patches = PatchSet(
    {**_httpx.REPLACEMENTS, **_aiohttp.REPLACEMENTS, **_urllib3.REPLACEMENTS, **_websockets.REPLACEMENTS},
    "its requests are sent without trace context",
    _changed,
)

_lock = threading.Lock()
_counts: Counter["_Named"] = Counter()


class _Named(NamedTuple):
    """The gateways of one or more :func:`instrument`. Those that name the same are counted and not kept."""

    gateways: tuple[str, ...]
    generation: int
    for_adapter: bool = False


_generation = 0
"""Is counted up by :func:`uninstrument`, so that the handles from before it have nothing to undo."""


class Instrumentation:
    """What :func:`instrument` has switched on. As a context manager, it is switched off at the end.

    Attributes:
        gateways: Those that were named for this one.
    """

    def __init__(self, gateways: Gateways, *, for_adapter: bool = False, is_counted: bool = True) -> None:
        """Switch it on.

        Args:
            gateways: May be none, for an adapter whose model calls bring their own.
            for_adapter: Whether it belongs to a framework's adapter, and :func:`uninstrument` leaves it alone.
            is_counted: Whether those that name the same gateways are counted, which takes a lock. If not, each is kept
                by itself, and the garbage collector may switch it off.
        """
        self.gateways = gateways
        self.for_adapter = for_adapter
        self._handle: Any = self
        if is_counted:
            self._handle = _Named(gateways.urls, 0 if for_adapter else _generation, for_adapter)
            with _lock:
                _counts[self._handle] += 1
        self._is_on = True
        _patches.add(self._handle)
        if not for_adapter:
            renew()

    @property
    def is_on(self) -> bool:
        """Whether neither this handle nor :func:`uninstrument` has undone it."""
        return self._is_on and (self._handle is self or self.is_named())

    def is_named(self) -> bool:
        """Tell whether this one or another that is counted together with it is in force."""
        return self._handle in _counts

    def uninstrument(self, *, wait: bool = True) -> None:
        """Switch this one off; others stay in force. The second time does nothing.

        Args:
            wait: As in :meth:`PatchSet.remove`.
        """
        if not self.is_on:
            return
        self._is_on = False
        if self._handle is not self:
            with _lock:
                _counts[self._handle] -= 1
                if _counts[self._handle] > 0:
                    return
                del _counts[self._handle]
        _patches.remove(self._handle, wait=wait)
        if self.is_named():
            # Another thread has named the same gateways in the meantime.
            _patches.add(self._handle)

    def __enter__(self) -> "Instrumentation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstrument()


def instrument(*urls: str | Iterable[str], gateways: Iterable[str] | None = None) -> Instrumentation:
    """Make every HTTP client of this process put the trace context on its requests to gateways.

    Covered are httpx, httpx2, aiohttp, requests, urllib3, boto3 (with an ``endpoint_url``) and websockets.

    For frameworks that make their HTTP clients themselves: nothing else has to be changed. The context is that of the
    innermost active span at the time of the request; a ``traceparent`` that the request already has stays. Calling it
    again adds gateways, until its own handle is switched off.

    Args:
        *urls: The gateways, ``scheme://host[:port][/prefix]`` each, one by one or in a list. By default those in
            ``AGENT_GATEWAY_URLS``.
        gateways: More of them, as the other functions take them.

    Returns:
        A handle that undoes this call, and a context manager that does so at its end.

    Raises:
        ConfigurationError: No gateway is named, or a name is not a URL.

    Example:
        >>> from agent_gateway_client import instrument
        >>> with instrument("http://localhost:5000/gateway"):
        ...     pass  # Requests of any client to http://localhost:5000/gateway/... carry the trace context.
    """
    return Instrumentation(gateways_for_process(urls, "instrument", gateways))


def renew() -> None:
    """Put the hooks on where somebody has put back what they had found before, or a library was half imported."""
    _patches.renew()


def uninstrument() -> None:
    """Undo every :func:`instrument`. The adapters of frameworks are undone separately."""
    global _generation
    _generation += 1
    for handle in _patches.handles:
        if not handle.for_adapter:
            with _lock:
                del _counts[handle]
            _patches.remove(handle)


_keeper: Instrumentation | None = None


def keep_from_overwriting() -> None:
    """Keep OpenTelemetry's instrumentation, where it is loaded, from overwriting a header that is set by hand.

    The replaced functions do that. They stay in place until :func:`uninstrument`, and name no gateway.
    """
    global _keeper
    if not instrumentation_is_loaded():
        return
    if _keeper is None or not _keeper.is_on:
        _keeper = Instrumentation(NO_GATEWAYS)


def gateways_for_process(
    urls: Iterable[str | Iterable[str]], function: str, gateways: Iterable[str] | None = None
) -> Gateways:
    """Read the gateways that a process-wide function was given, or those of the environment.

    Args:
        urls: What it was given one by one, or in a list.
        function: Its name, for the error.
        gateways: What it was given as ``gateways=``.

    Raises:
        ConfigurationError: No gateway is named, or a name is not a URL.
    """
    named = Gateways(flatten(urls)) | Gateways(() if gateways is None else gateways)
    known = named or Gateways.from_environment()
    if not known:
        raise ConfigurationError(
            f"No gateway is named. Give its URL, like {function}('http://localhost:5000/gateway'), or set "
            f"{GATEWAY_URLS_VARIABLE}."
        )
    return known
