"""Finds the gateways that apply to a request."""

from typing import Any

from agent_gateway_client.active_span import ModelCall
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.http import _notes
from agent_gateway_client.http._clients import hook_of
from agent_gateway_client.http._opentelemetry import instrumentation_is_loaded
from agent_gateway_client.http._propagate import is_marked

_gateways = NO_GATEWAYS
"""The gateways of all active handles. Replaced atomically, so that a request can read it without a lock."""


def instrumented_gateways() -> Gateways:
    """Return the gateways of all active :func:`instrument` handles."""
    return _gateways


def set_process_gateways(gateways: Gateways) -> None:
    """Replace the gateways of the process."""
    global _gateways
    _gateways = gateways or NO_GATEWAYS


def may_carry(request: Any, call: ModelCall | None) -> bool:
    """Return whether a request of httpx may go to a gateway, or an earlier hop of it did.

    ``False`` for most requests outside of model calls if only a framework's adapter is active: they have no gateways.
    If OpenTelemetry's instrumentations are loaded, the request may have a header that was set by hand.
    """
    return bool(
        _gateways is not NO_GATEWAYS
        or (call is not None and call.gateways is not NO_GATEWAYS)
        or is_marked(request)
        or instrumentation_is_loaded()
        or _notes.is_wanted()
    )


class KnownGateways:
    """The gateways of the process, of the request's model call, and of a wrapped client."""

    __slots__ = ("_call", "_client")

    def __init__(self, call: ModelCall | None, client: Any = None) -> None:
        self._call = call
        self._client = client

    def covers(self, scheme: str, host: str, port: int | None, path: str) -> bool:
        """Return the same as :meth:`Gateways.covers`."""
        # NO_GATEWAYS if only an adapter is active. Comparing it is faster than calling its methods.
        if _gateways is not NO_GATEWAYS and _gateways.covers(scheme, host, port, path):
            return True
        if self._call is not None and self._call.gateways.covers(scheme, host, port, path):
            return True
        hook = hook_of(self._client) if self._client is not None else None
        return hook is not None and hook.gateways.covers(scheme, host, port, path)

    def is_near(self, scheme: str, host: str, port: int | None) -> bool:
        """Return the same as :meth:`Gateways.is_near`."""
        # Most requests of a model call go to its gateways.
        if self._call is not None and self._call.gateways is not NO_GATEWAYS:
            return True
        if _gateways is not NO_GATEWAYS and _gateways.is_near(scheme, host, port):
            return True
        hook = hook_of(self._client) if self._client is not None else None
        return hook is not None and hook.gateways.is_near(scheme, host, port)

    def near_miss(self, scheme: str, host: str, port: int | None, path: str) -> str | None:
        """Return the same as :meth:`Gateways.near_miss`: the first reason found."""
        hook = hook_of(self._client) if self._client is not None else None
        for known in (_gateways, self._call and self._call.gateways, hook and hook.gateways):
            if known and (why := known.near_miss(scheme, host, port, path)):
                return why
        return None
