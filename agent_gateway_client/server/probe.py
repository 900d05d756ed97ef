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
from agent_gateway_client.w3c import TRACEPARENT, TRACESTATE, TraceContext, extract, parse

PROBE_HEADER = "agent-gateway-probe"
"""Requests the answer; its value is ignored."""

COMPANION_HEADER = "agent-gateway-companion"
"""The answer, a JSON object."""

_PROBE = PROBE_HEADER.encode()
_TRACEPARENT = TRACEPARENT.encode()
_TRACESTATE = TRACESTATE.encode()

Header = tuple[bytes, bytes]


def scan_headers(headers: Iterable[Header]) -> tuple[tuple[bytes, ...], bool]:
    """Return the values of a request's ``traceparent`` lines, and whether it has the probe header.

    One loop for both, because it runs for every request. The length rules out nearly every line.
    """
    parents: tuple[bytes, ...] = ()
    is_probe = False
    for name, value in headers:
        # The lengths of both names. A constant takes two thirds of the time of a global.
        if len(name) in {11, 19}:
            name = name.lower()
            if name == _TRACEPARENT:
                parents += (value,)
            elif name == _PROBE:
                is_probe = True
    return parents, is_probe


def read_parent(parents: tuple[bytes, ...], headers: Iterable[Header]) -> TraceContext | None:
    """Return the remote parent of a request with these ``traceparent`` lines and these header lines."""
    states: tuple[bytes, ...] = ()
    for name, value in headers:
        if len(name) == 10 and name.lower() == _TRACESTATE:
            states += (value,)
    return parse(parents, states)


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
