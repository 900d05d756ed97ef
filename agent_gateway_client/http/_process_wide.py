"""Instruments all HTTP clients of the process.

Covers httpx, httpx2, aiohttp, urllib3 (and with it requests and boto3) and websockets. Each has one function that sends
all requests, called for each retry and each hop of a redirect. These functions are replaced while at least one
:func:`instrument` is active. Installed libraries are imported, so that the order of the program's imports does not
matter; the others are skipped. LangChain's runs are followed too, once the program has imported its models.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple

from agent_gateway_client._langchain_runs import runs
from agent_gateway_client._patching import PatchSet
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE, NO_GATEWAYS, Gateways, flatten
from agent_gateway_client.http import _aiohttp, _httpx, _known, _notes, _urllib3, _websockets
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
_counts: Counter["_Counted"] = Counter()


class _Counted(NamedTuple):
    """The gateways of one or more :func:`instrument` calls. Calls with the same gateways are only counted."""

    gateways: tuple[str, ...]
    generation: int
    for_adapter: bool = False


_generation = 0
"""Incremented by :func:`uninstrument`, so that older handles have nothing to undo."""


class Instrumentation:
    """The handle of one :func:`instrument` call. As a context manager, it undoes the call on exit.

    Attributes:
        gateways: The gateways of this call.
    """

    def __init__(self, gateways: Gateways, *, for_adapter: bool = False, is_counted: bool = True) -> None:
        """Start the instrumentation.

        Args:
            gateways: Empty for an adapter whose model calls have their own.
            for_adapter: Whether it belongs to a framework's adapter; :func:`uninstrument` does not undo it.
            is_counted: Whether handles with the same gateways are counted, which takes a lock. If not, each is kept
                separately, and may be undone by the garbage collector.
        """
        self.gateways = gateways
        self.for_adapter = for_adapter
        self._handle: Any = self
        if is_counted:
            self._handle = _Counted(gateways.urls, 0 if for_adapter else _generation, for_adapter)
            with _lock:
                _counts[self._handle] += 1
        self._is_on = True
        _patches.add(self._handle)
        if not for_adapter:
            renew()

    @property
    def is_on(self) -> bool:
        """Whether neither this handle nor :func:`uninstrument` has undone it."""
        return self._is_on and (self._handle is self or self.is_held())

    def is_held(self) -> bool:
        """Return whether this handle, or another one that is counted with it, is active."""
        return self._handle in _counts

    def uninstrument(self, *, wait: bool = True) -> None:
        """Undo this handle; others stay active. Idempotent.

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
        if self.is_held():
            # Another thread has instrumented the same gateways in the meantime.
            _patches.add(self._handle)

    def __enter__(self) -> "Instrumentation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstrument()


def instrument(*urls: str | Iterable[str], gateways: Iterable[str] | None = None) -> Instrumentation:
    """Make every HTTP client of this process add the trace context to its requests to gateways.

    Covers httpx, httpx2, aiohttp, requests, urllib3, boto3 (with an ``endpoint_url``) and websockets, and so frameworks
    that create their own HTTP clients.

    The context is that of the innermost active span when the request is sent. A ``traceparent`` that the request
    already has is kept. Calling it again adds gateways until that call's handle is undone.

    Args:
        *urls: The gateways, ``scheme://host[:port][/prefix]`` each, as separate arguments or in a list. By default
            those in ``AGENT_GATEWAY_URLS``.
        gateways: More gateways, in the form that the other functions accept.

    Returns:
        A handle that undoes this call; as a context manager, it does so on exit.

    Raises:
        ConfigurationError: No gateway is configured, or a value is not a URL.

    Example:
        >>> from agent_gateway_client import instrument
        >>> with instrument("http://localhost:5000/gateway"):
        ...     pass  # Requests of any client to http://localhost:5000/gateway/... carry the trace context.
    """
    return Instrumentation(gateways_for_process(urls, "instrument", gateways))


def renew() -> None:
    """Apply patches again that other code has undone, or whose library was still being imported."""
    _patches.renew()


def uninstrument() -> None:
    """Undo all :func:`instrument` calls. The frameworks' adapters are undone separately."""
    global _generation
    _generation += 1
    for handle in _patches.handles:
        if not handle.for_adapter:
            with _lock:
                del _counts[handle]
            _patches.remove(handle)


_keeper: Instrumentation | None = None


def keep_from_overwriting() -> None:
    """Prevent OpenTelemetry's instrumentation, if it is loaded, from overwriting a header that is set by hand.

    Patches the HTTP libraries without gateways, until :func:`uninstrument`.
    """
    global _keeper
    if not instrumentation_is_loaded():
        return
    if _keeper is None or not _keeper.is_on:
        _keeper = Instrumentation(NO_GATEWAYS)


def gateways_for_process(
    urls: Iterable[str | Iterable[str]], function: str, gateways: Iterable[str] | None = None
) -> Gateways:
    """Return the gateways from a process-wide function's arguments, or those of the environment.

    Args:
        urls: Its positional arguments, each a URL or a list of URLs.
        function: Its name, for the error.
        gateways: Its argument ``gateways``.

    Raises:
        ConfigurationError: No gateway is configured, or a value is not a URL.
    """
    given = Gateways(flatten(urls)) | Gateways(() if gateways is None else gateways)
    known = given or Gateways.from_environment()
    if not known:
        raise ConfigurationError(
            f"No gateway is configured. Give its URL, like {function}('http://localhost:5000/gateway'), or set "
            f"{GATEWAY_URLS_VARIABLE}."
        )
    return known
