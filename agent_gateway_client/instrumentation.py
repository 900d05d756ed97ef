"""Process-wide: every httpx, httpx2 and aiohttp client puts the trace context on its requests to gateways.

Each of the three has one function through which all requests go, for each retry and each hop of a redirect. These are
replaced while at least one :func:`instrument` is in force. A library that is not installed is left out; one that is
installed is imported, so that it does not matter what the program imports later.
"""

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from agent_gateway_client._aiohttp import AiohttpRequest
from agent_gateway_client._log import version_of, warn_once
from agent_gateway_client._otel_http import sent_as_it_is
from agent_gateway_client._patch import Patch, Switch, find_patch
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE, Gateways
from agent_gateway_client.http import hook_of, propagate
from agent_gateway_client.propagation import ModelCall, model_call

_NONE = Gateways(())

_lock = threading.RLock()
_handles: list["Instrumentation"] = []
_patches: dict[str, Patch] = {}
_gateways = _NONE
"""Those of all handles in force. Replaced as a whole, so that a request can read it without the lock."""


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
            _handles.append(self)
            _apply()

    def uninstrument(self) -> None:
        """Switch this one off; others stay in force. The second time does nothing."""
        with _lock:
            if self in _handles:
                _handles.remove(self)
                _apply()

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
    with _lock:
        _handles[:] = [handle for handle in _handles if handle.for_adapter]
        _apply()


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


def instrumented_gateways() -> Gateways:
    """Return the gateways of every :func:`instrument` that is in force."""
    return _gateways


def _apply() -> None:
    global _gateways
    _gateways = Gateways(url for handle in _handles for url in handle.gateways)
    if _handles:
        for patch in _known_patches():
            patch.put_on()
    else:
        for patch in _patches.values():
            patch.take_off()


def _known_patches() -> Iterator[Patch]:
    for path, replace in _CHOKE_POINTS.items():
        patch = _patches.get(path) or find_patch(path, replace, "its requests are sent without trace context")
        if patch is not None:
            _patches[path] = patch
            yield patch


def _send(original: Callable[..., Any], switch: Switch) -> Any:
    def _send_single_request(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(client, request, *args, **kwargs)
        call = model_call.get()
        propagate(request, _Known(call, client))
        try:
            with sent_as_it_is(request.headers):
                response = original(client, request, *args, **kwargs)
        except BaseException as error:
            _tell(call, "failed", error)
            raise
        _tell(call, "answered", response)
        return response

    return _send_single_request


def _async_send(original: Callable[..., Any], switch: Switch) -> Any:
    async def _send_single_request(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(client, request, *args, **kwargs)
        call = model_call.get()
        propagate(request, _Known(call, client))
        try:
            with sent_as_it_is(request.headers):
                response = await original(client, request, *args, **kwargs)
        except BaseException as error:
            _tell(call, "failed", error)
            raise
        _tell(call, "answered", response)
        return response

    return _send_single_request


def _send_of_aiohttp(original: Callable[..., Any], switch: Switch) -> Any:
    async def send(request: Any, *args: Any, **kwargs: Any) -> Any:
        if switch.is_on:
            _propagate_of_aiohttp(request)
        return await original(request, *args, **kwargs)

    return send


def _propagate_of_aiohttp(request: Any) -> None:
    try:
        if request.method != "CONNECT":  # which goes to a proxy
            propagate(AiohttpRequest(request), _Known(model_call.get()))
    except Exception as error:  # whatever aiohttp does, the user's call goes on
        warn_once(
            "instrumentation.aiohttp",
            "aiohttp %s is not what this version of agent-gateway-client expects (%s); a request was sent without "
            "trace context. Upgrade agent-gateway-client.",
            version_of("aiohttp"),
            type(error).__name__,
        )


_CHOKE_POINTS = {
    "httpx:Client._send_single_request": _send,
    "httpx:AsyncClient._send_single_request": _async_send,
    "httpx2:Client._send_single_request": _send,
    "httpx2:AsyncClient._send_single_request": _async_send,
    "aiohttp:ClientRequest.send": _send_of_aiohttp,
}


class _Known:
    """The gateways of the process, of the model call that a request belongs to, and of a client that is wrapped."""

    __slots__ = ("_call", "_client")

    def __init__(self, call: ModelCall | None, client: Any = None) -> None:
        self._call = call
        self._client = client

    def covers(self, scheme: str, host: str, port: int | None, path: str) -> bool:
        if _gateways.covers(scheme, host, port, path):
            return True
        if self._call is not None and self._call.gateways.covers(scheme, host, port, path):
            return True
        hook = hook_of(self._client) if self._client is not None else None
        return hook is not None and hook.gateways.covers(scheme, host, port, path)


def _tell(call: ModelCall | None, event: str, what: Any) -> None:
    """Tell a call that wants to know it how its request ended: ``answered`` or ``failed``."""
    listener = getattr(call, event, None)
    if listener is not None:
        listener(what)
