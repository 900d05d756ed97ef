"""Finds the gateways that apply to a request."""

from agent_gateway_client.active_span import ModelCall
from agent_gateway_client.gateways import NO_GATEWAYS, Gateways

_gateways = NO_GATEWAYS
"""The gateways of all active handles. Replaced atomically, so that a request can read it without a lock."""


def instrumented_gateways() -> Gateways:
    """Return the gateways of all active :func:`instrument` handles."""
    return _gateways


def set_process_gateways(gateways: Gateways) -> None:
    """Replace the gateways of the process."""
    global _gateways
    _gateways = gateways or NO_GATEWAYS


def known_gateways(call: ModelCall | None) -> Gateways:
    """Return the gateways of the process and of the request's model call."""
    given = NO_GATEWAYS if call is None else call.gateways
    if given is NO_GATEWAYS or _gateways is NO_GATEWAYS:
        return _gateways if given is NO_GATEWAYS else given
    return _gateways | given
