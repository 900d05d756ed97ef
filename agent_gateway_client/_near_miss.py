"""Finds the mistake in a request that almost goes to a gateway, or in the gateway's URL."""

import re
from collections.abc import Iterable

LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1", "0.0.0.0"])

_MODEL_CALL = re.compile(
    r"/(chat/completions|completions|responses|embeddings|messages|converse|converse-stream|invocations|realtime)/?$"
    r"|:(streamG|g)enerateContent$"
)
"""Path suffixes that only model APIs have. A gateway's host often has other routes, such as MLflow's API."""


def near_miss(
    origins: Iterable[tuple[str, str, int, str, bool]], scheme: str, host: str, port: int | None, path: str
) -> str | None:
    """Return why a request misses a gateway by little; ``None`` for other requests.

    Args:
        origins: Scheme, host, port and prefix of each gateway, and whether the request's path is below the prefix.
        scheme: The request's scheme, http or https.
        host: The request's host.
        port: The request's port.
        path: The request's path without the query.
    """
    for own_scheme, own_host, own_port, prefix, is_below in origins:
        same_port = own_port == (port or (443 if scheme == "https" else 80))
        default_ports = port in (None, 80, 443) and own_port in (80, 443)
        if host == own_host and scheme != own_scheme and is_below and (same_port or default_ports):
            return f"the gateway is {own_scheme}://{own_host}:{own_port}{prefix}, and the request uses {scheme}"
        if not same_port or scheme != own_scheme:
            continue
        if host != own_host and {host, own_host} <= LOOPBACK and is_below:
            return f"the gateway's host is {own_host}, and the request's is {host}; use one spelling for both"
        if host == own_host and not is_below and _MODEL_CALL.search(path):
            return f"the gateway's path is {prefix}, and the request's does not begin with it"
    return None
