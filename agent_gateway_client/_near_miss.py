"""Requests that almost go to a gateway: what their sender or the gateway's URL got wrong."""

import re
from collections.abc import Iterable

LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1", "0.0.0.0"])

_MODEL_CALL = re.compile(
    r"/(chat/completions|completions|responses|embeddings|messages|converse|converse-stream|invocations|realtime)/?$"
    r"|:(streamG|g)enerateContent$"
)
"""The end of a path that only model APIs have. A gateway's own host often serves much else, like MLflow's API."""


def near_miss(
    origins: Iterable[tuple[str, str, int, str, bool]], scheme: str, host: str, port: int | None, path: str
) -> str | None:
    """Return why a request almost goes to a gateway, or ``None`` where it has nothing to do with one.

    Args:
        origins: Scheme, host, port and prefix of each gateway, and whether the request's path is below the prefix.
        scheme: The request's; http or https.
        host: The request's.
        port: The request's.
        path: The request's, without the query.
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
