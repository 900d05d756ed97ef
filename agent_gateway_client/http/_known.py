"""Which gateways a request may carry trace context to."""

from typing import Any

from agent_gateway_client.active_span import ModelCall
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.http import _notes
from agent_gateway_client.http._clients import hook_of
from agent_gateway_client.http._opentelemetry import instrumentation_is_loaded
from agent_gateway_client.http._propagate import is_marked

_gateways = NO_GATEWAYS
"""Those of all handles in force. Replaced as a whole, so that a request can read it without a lock."""


def instrumented_gateways() -> Gateways:
    """Return the gateways of every :func:`instrument` that is in force."""
    return _gateways


def set_process_gateways(gateways: Gateways) -> None:
    """Replace the gateways of the process."""
    global _gateways
    _gateways = gateways or NO_GATEWAYS


def may_carry(request: Any, call: ModelCall | None) -> bool:
    """Tell whether a request of httpx's kind may go to a gateway, or has been to one.

    Where a framework's adapter is on and the request belongs to none of its calls, no gateway is known for it. Beside
    OpenTelemetry's instrumentations it may carry a header that was set by hand.
    """
    return bool(
        _gateways
        or (call is not None and call.gateways)
        or is_marked(request)
        or instrumentation_is_loaded()
        or _notes.is_wanted()
    )


class KnownGateways:
    """The gateways of the process, of the model call that a request belongs to, and of a client that is wrapped."""

    __slots__ = ("_call", "_client")

    def __init__(self, call: ModelCall | None, client: Any = None) -> None:
        self._call = call
        self._client = client

    def covers(self, scheme: str, host: str, port: int | None, path: str) -> bool:
        """Tell what :meth:`Gateways.covers` does."""
        if _gateways.covers(scheme, host, port, path):
            return True
        if self._call is not None and self._call.gateways.covers(scheme, host, port, path):
            return True
        hook = hook_of(self._client) if self._client is not None else None
        return hook is not None and hook.gateways.covers(scheme, host, port, path)

    def near_miss(self, scheme: str, host: str, port: int | None, path: str) -> str | None:
        """Return what :meth:`Gateways.near_miss` does, for the first that has a reason."""
        hook = hook_of(self._client) if self._client is not None else None
        for known in (_gateways, self._call and self._call.gateways, hook and hook.gateways):
            if known and (why := known.near_miss(scheme, host, port, path)):
                return why
        return None
