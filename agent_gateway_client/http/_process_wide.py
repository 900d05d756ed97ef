"""Process-wide: every client of a library below puts the trace context on its requests to gateways.

httpx, httpx2, aiohttp, urllib3 (and with it requests and boto3) and websockets. Each has one function through which all
requests go, for each retry and each hop of a redirect. These are replaced while at least one :func:`instrument` is in
force. A library that is not installed is left out; one that is installed is imported, so that it does not matter what
the program imports later.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple

from agent_gateway_client._patching import Patch, find_patch
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE, NO_GATEWAYS, Gateways, flatten
from agent_gateway_client.http import _aiohttp, _httpx, _known, _urllib3, _websockets
from agent_gateway_client.http._opentelemetry import instrumentation_is_loaded

_REPLACEMENTS = {
    **_httpx.REPLACEMENTS,
    **_aiohttp.REPLACEMENTS,
    **_urllib3.REPLACEMENTS,
    **_websockets.REPLACEMENTS,
}

_lock = threading.RLock()
_in_force: Counter["_Key"] = Counter()
_patches: dict[str, Patch] = {}


class _Key(NamedTuple):
    """What a handle asks for. Handles that ask for the same are counted and not kept."""

    urls: tuple[str, ...]
    for_adapter: bool
    generation: int


_generation = 0
"""Is counted up by :func:`uninstrument`, so that the handles from before it have nothing to undo."""


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
        with _lock:
            self._key = _Key(gateways.urls, for_adapter, 0 if for_adapter else _generation)
            self._is_on = True
            _in_force[self._key] += 1
            if _in_force[self._key] == 1:
                _apply()
            else:
                # Somebody else may have put back what they found before ours.
                for patch in _patches.values():
                    patch.put_on()

    @property
    def is_on(self) -> bool:
        """Whether neither this handle nor :func:`uninstrument` has undone it."""
        return self._is_on and self._key in _in_force

    def uninstrument(self) -> None:
        """Switch this one off; others stay in force. The second time does nothing."""
        with _lock:
            if not self.is_on:
                return
            self._is_on = False
            _in_force[self._key] -= 1
            if not _in_force[self._key]:
                del _in_force[self._key]
                _apply()

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
        ConfigurationError: No gateway is named, or a name is no URL.

    Example:
        >>> from agent_gateway_client import instrument
        >>> with instrument("http://localhost:5000/gateway"):
        ...     pass  # Requests of any client to http://localhost:5000/gateway/... carry the trace context.
    """
    return Instrumentation(gateways_for_process(urls, "instrument", gateways))


def uninstrument() -> None:
    """Undo every :func:`instrument`. The adapters of frameworks have an undo of their own."""
    global _generation
    with _lock:
        _generation += 1
        for key in [key for key in _in_force if not key.for_adapter]:
            del _in_force[key]
        _apply()


_keeper: Instrumentation | None = None


def keep_from_overwriting() -> None:
    """Keep OpenTelemetry's instrumentation, where it is loaded, from overwriting a header that is set by hand.

    The replaced functions do that. They stay in place until :func:`uninstrument`, and name no gateway.
    """
    global _keeper
    if not instrumentation_is_loaded():
        return
    with _lock:
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
        ConfigurationError: No gateway is named, or a name is no URL.
    """
    named = Gateways(flatten(urls)) | Gateways(() if gateways is None else gateways)
    known = named or Gateways.from_environment()
    if not known:
        raise ConfigurationError(
            f"No gateway is named. Give its URL, like {function}('http://localhost:5000/gateway'), or set "
            f"{GATEWAY_URLS_VARIABLE}."
        )
    return known


def _apply() -> None:
    _known.set_process_gateways(Gateways(url for key in _in_force for url in key.urls))
    if _in_force:
        for patch in _known_patches():
            patch.put_on()
    else:
        for patch in _patches.values():
            patch.take_off()


def _known_patches() -> Iterator[Patch]:
    for path, replace in _REPLACEMENTS.items():
        patch = _patches.get(path) or find_patch(path, replace, "its requests are sent without trace context")
        if patch is not None:
            _patches[path] = patch
            yield patch
