"""Returns the trace context as headers, for clients that this package does not instrument."""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import warn_once
from agent_gateway_client.active_span import as_span, as_trace_context, current_trace_context, model_call
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE, Gateways
from agent_gateway_client.http import _notes
from agent_gateway_client.http._known import instrumented_gateways
from agent_gateway_client.http._process_wide import keep_from_overwriting

_guard = Guard("trace_headers() could not read the active span; it returns no headers")


def trace_headers(url: object, gateways: Iterable[str] | None = None, *, span: Any = None) -> dict[str, str]:
    """Return the headers for a request to ``url``, for a client that this package does not instrument.

    Args:
        url: The URL of the request; ``ws://`` and ``wss://`` are treated as ``http://`` and ``https://``.
        gateways: ``scheme://host[:port][/prefix]`` each. By default those in ``AGENT_GATEWAY_URLS``, those of every
            active ``instrument()``, and inside a gateway its upstream gateways.
        span: The parent to use instead of the innermost active span: a span of OpenTelemetry or MLflow, including one
            of ``start_span_no_context()``.

    Returns:
        ``{"traceparent": …}``, with ``tracestate`` if the span has one. Empty if ``url`` is not a gateway or no span is
        active.

    Raises:
        ConfigurationError: A value of ``gateways`` is not a URL, or ``span`` is not a span.
    """
    parent = None if span is None else as_span(span)
    known = Gateways(gateways) if gateways is not None else _known_gateways()
    if url not in known:
        with _guard:
            _warn_of_near_miss(str(url), known)
        return {}
    context = None
    with _guard:
        context = as_trace_context(parent.get_span_context()) if parent is not None else current_trace_context()
        if context is None and parent is None:
            _notes.warn_without_span(re.sub(r"//[^/@]*@", "//", str(url).partition("?")[0]))
    if context is None:
        return {}
    keep_from_overwriting()
    return context.to_headers()


def _warn_of_near_miss(url: str, known: Gateways) -> None:
    try:
        parts = urlsplit(url)
        scheme, host, port, path = parts.scheme, parts.hostname or "", parts.port, parts.path
    except ValueError:
        return
    if why := known.near_miss(scheme, host, port, path):
        _notes.warn_of_near_miss(_notes.shown(scheme, host, port, path), why)


def _known_gateways() -> Gateways:
    call = model_call.get()
    known = instrumented_gateways() | call.gateways if call else instrumented_gateways()
    try:
        return Gateways.from_environment() | known
    except ConfigurationError as error:
        warn_once("trace_headers.environment", "%s is left out: %s", GATEWAY_URLS_VARIABLE, error)
        return known
