"""The companion's answer to ``agent-gateway doctor``.

The response to a model call with the header ``agent-gateway-probe`` gets a header that reports which trace context
arrived and whether mirrors can be sent. It contains nothing about other calls, and callers that the gateway rejects do
not get it. Responses to all other calls are unchanged.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from agent_gateway_client._version import __version__
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.w3c import TRACEPARENT, extract

PROBE_HEADER = "agent-gateway-probe"
"""Requests the answer; its value is ignored."""

COMPANION_HEADER = "agent-gateway-companion"
"""The answer, a JSON object."""

_PROBE = PROBE_HEADER.encode()
_PROBE_LENGTH = len(_PROBE)
_TRACEPARENT = TRACEPARENT.encode()
_PARENT_LENGTH = len(_TRACEPARENT)

Header = tuple[bytes, bytes]


def scan_headers(headers: Iterable[Header]) -> tuple[bool, bool]:
    """Return whether a request's header lines have a ``traceparent``, and whether they have the probe header.

    One loop for both, because it runs for every request. The length rules out nearly every line.
    """
    has_parent = is_probe = False
    for name, _ in headers:
        size = len(name)
        if size == _PARENT_LENGTH:
            has_parent = has_parent or name.lower() == _TRACEPARENT
        elif size == _PROBE_LENGTH:
            is_probe = is_probe or name.lower() == _PROBE
    return has_parent, is_probe


def without_probe(headers: Iterable[Header]) -> list[Header]:
    """Return header lines without the probe header, which the application must not pass on."""
    return [header for header in headers if header[0].lower() != _PROBE]


def answer(headers: Iterable[Header], exporter: Exporter) -> Header:
    """Return the response header for a request with these header lines."""
    lines = list(headers)
    received = extract(lines)
    facts: Mapping[str, Any] = {
        "version": __version__,
        "traceparents": sum(name.lower() == _TRACEPARENT for name, _ in lines),
        # As it was parsed, not the raw header.
        "traceparent": received.traceparent if received else None,
        "exporter": exporter.destination.convention.value,
        "problem": exporter.problem,
    }
    return COMPANION_HEADER.encode(), json.dumps(facts, separators=(",", ":")).encode()
