"""Wraps single httpx and httpx2 clients, which then add the trace context to their requests to gateways."""

import threading
import weakref
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways, gateways_for_client
from agent_gateway_client.http import _notes
from agent_gateway_client.http._opentelemetry import guard, instrumentation_is_loaded, suppress_otel_overwrite
from agent_gateway_client.http._propagate import propagate

ClientT = TypeVar("ClientT")


class _TakesHooks(Protocol):
    """The attributes that :func:`wrap_httpx` uses of httpx and httpx2 clients, sync and async."""

    event_hooks: Any

    @property
    def base_url(self) -> object: ...


HTTPXClientT = TypeVar("HTTPXClientT", bound=_TakesHooks)


def wrap_httpx(client: HTTPXClientT, gateways: Iterable[str] | None = None) -> HTTPXClientT:
    """Make a client add the trace context to every request that it sends to a gateway.

    The context is that of the innermost active span when the request is sent. A ``traceparent`` that the request
    already has is kept. Wrapping a client again adds to its gateways.

    Args:
        client: An ``httpx`` or ``httpx2`` client, sync or async; it is changed in place.
        gateways: ``scheme://host[:port][/prefix]`` each. By default the client's own ``base_url``, and those in
            ``AGENT_GATEWAY_URLS``.

    Returns:
        The same object.

    Raises:
        ConfigurationError: ``client`` is not an httpx client, no gateway is configured, or a value is not a URL.
    """
    if not _takes_hooks(client):
        raise ConfigurationError(
            f"wrap_httpx() takes an httpx or httpx2 client, not {type(client).__qualname__}. For an OpenAI client "
            "there is wrap_openai(); for anything else, trace_headers(url)."
        )
    base_url = str(getattr(client, "base_url", ""))
    wrap(client, client, gateways_for_client(base_url, gateways))
    return client


def unwrap(client: ClientT) -> ClientT:
    """Undo :func:`wrap_httpx` or ``wrap_openai`` for this client.

    An OpenAI client and its ``with_options()`` copies are unwrapped together. Another client that shares the HTTP
    client stays wrapped. A client that was never wrapped is not changed.

    Returns:
        The same object.
    """
    found = getattr(client, _ATTRIBUTE, None)
    if isinstance(found, Wrap):
        found.take_off()
        vars(client).pop(_ATTRIBUTE, None)
        for name in COPYING:
            if hasattr(vars(client).get(name), "copies_wrap"):
                delattr(client, name)
    return client


COPYING = ("copy", "with_options")
"""The methods of an OpenAI client that return a copy; ``wrap_openai`` replaces them on the instance."""

_ATTRIBUTE = "_agent_gateway_wrap"
_SEND = "_send_single_request"

_lock = threading.RLock()


class Wrap:
    """The state that a wrapped client and its copies share.

    Attributes:
        gateways: The gateways of these clients.
        is_on: Whether the clients are still wrapped.
    """

    def __init__(self) -> None:
        self.gateways = NO_GATEWAYS
        self.is_on = True
        self._hooks: WeakSet[_RequestHook] = WeakSet()

    def put_on(self, client: Any, http_client: Any) -> None:
        """Cover the requests of an HTTP client, and register this wrap on ``client`` for :func:`unwrap`."""
        with _lock:
            hook = hook_of(http_client) or _add_hook(http_client)
            hook.wraps.add(self)
            hook.gateways |= self.gateways
            self._hooks.add(hook)
            setattr(client, _ATTRIBUTE, self)

    def take_off(self) -> None:
        """Stop covering every HTTP client that only this wrap covers."""
        with _lock:
            self.is_on = False
            for hook in self._hooks:
                hook.wraps.discard(self)
                hook.gateways = Gateways(url for wrap in hook.wraps for url in wrap.gateways)
                http_client = hook.client()
                if not hook.wraps and http_client is not None:
                    _remove_hook(http_client)
            self._hooks.clear()


def wrap(client: Any, http_client: Any, gateways: Gateways) -> Wrap:
    """Wrap a client that sends through ``http_client``, or add to its gateways if it is already wrapped."""
    found = getattr(client, _ATTRIBUTE, None)
    mine = found if isinstance(found, Wrap) and found.is_on else Wrap()
    mine.gateways |= gateways
    mine.put_on(client, http_client)
    return mine


def hook_of(client: Any) -> "_RequestHook | None":
    """Return our hook of a client that has event hooks; ``None`` if the client is not wrapped."""
    for hook in client.event_hooks["request"]:
        if isinstance(hook, _RequestHook):
            return hook
    return None


class _RequestHook:
    def __init__(self, client: Any) -> None:
        self.client = weakref.ref(client)
        self.gateways = NO_GATEWAYS
        self._keeps_header = False
        # A wrap lives as long as one of its clients. After that, its gateways are kept until the next unwrap(), because
        # the HTTP client may still be in use.
        self.wraps: WeakSet[Wrap] = WeakSet()

    def __call__(self, request: Any) -> Any:
        # If the doctor runs the program, its own patches cover all clients.
        if _notes.recorder is None:
            propagate(request, self.gateways)
        if not self._keeps_header and instrumentation_is_loaded():
            self._keep_header()

    def _keep_header(self) -> None:
        """Prevent OpenTelemetry's instrumentation from overwriting the header, by replacing the client's send method.

        Not before the instrumentation is loaded, because it makes the client slower. httpx looks up the method after it
        has called the hooks.
        """
        self._keeps_header = True
        with guard, _lock:
            client: Any = self.client()
            if hasattr(type(client), _SEND) and _SEND not in vars(client) and hook_of(client) is self:
                make = _async_send if isinstance(self, _AsyncRequestHook) else _send
                setattr(client, _SEND, make(self.client))


class _AsyncRequestHook(_RequestHook):
    async def __call__(self, request: Any) -> None:
        super().__call__(request)


def _add_hook(client: Any) -> _RequestHook:
    hooks = client.event_hooks
    is_async = hasattr(client, "__aenter__")
    hook = (_AsyncRequestHook if is_async else _RequestHook)(client)
    # After the user's own hooks, so that a traceparent from one of them is kept.
    client.event_hooks = {**hooks, "request": [*hooks["request"], hook]}
    return hook


def _remove_hook(client: Any) -> None:
    hooks = client.event_hooks
    kept = [hook for hook in hooks["request"] if not isinstance(hook, _RequestHook)]
    client.event_hooks = {**hooks, "request": kept}
    if hasattr(vars(client).get(_SEND), "keeps_header"):
        delattr(client, _SEND)


def _send(client: "weakref.ref[Any]") -> Any:
    """Return a send method that prevents OpenTelemetry's instrumentation from overwriting the hook's header."""

    def send(request: Any, *args: Any, **kwargs: Any) -> Any:
        own: Any = client()
        with suppress_otel_overwrite(request.headers):
            return type(own)._send_single_request(own, request, *args, **kwargs)

    vars(send)["keeps_header"] = True
    return send


def _async_send(client: "weakref.ref[Any]") -> Any:
    async def send(request: Any, *args: Any, **kwargs: Any) -> Any:
        own: Any = client()
        with suppress_otel_overwrite(request.headers):
            return await type(own)._send_single_request(own, request, *args, **kwargs)

    vars(send)["keeps_header"] = True
    return send


def _takes_hooks(client: Any) -> bool:
    return not isinstance(client, type) and hasattr(client, "event_hooks") and hasattr(client, "base_url")
