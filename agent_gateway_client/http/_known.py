"""Finds the gateways that apply to a request."""

from typing import Any

from agent_gateway_client.active_span import ModelCall
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways
from agent_gateway_client.http._clients import hook_of

_gateways = NO_GATEWAYS
"""The gateways of all active handles. Replaced atomically, so that a request can read it without a lock."""


def instrumented_gateways() -> Gateways:
    """Return the gateways of all active :func:`instrument` handles."""
    return _gateways


def set_process_gateways(gateways: Gateways) -> None:
    """Replace the gateways of the process."""
    global _gateways
    _gateways = gateways or NO_GATEWAYS


def known_gateways(call: ModelCall | None, client: Any = None) -> Gateways:
    """Return the gateways of the process, of the request's model call, and of a wrapped client of httpx."""
    known = _gateways
    if call is not None and (given := call.gateways) is not NO_GATEWAYS:
        known = given if known is NO_GATEWAYS else known | given
    hook = hook_of(client) if client is not None else None
    return known if hook is None else known | hook.gateways
