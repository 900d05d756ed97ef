"""urllib3, and with it requests, boto3 and everything else that sends through its pools.

One method sends all requests of all pools, for each retry and each hop of a redirect, with the caller's headers, so a
header that is added there is never forwarded to another host. :mod:`._redirects` has the state that the hops of a pool
manager share; requests follows redirects itself, and has a method that is called for each.
botocore has signed the request by then. Its signature covers only the headers that it lists, so adding one later is
valid.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any
from urllib.parse import urlsplit

from agent_gateway_client._guard import Guard
from agent_gateway_client._patching import Switch
from agent_gateway_client.active_span import is_local_span, model_call
from agent_gateway_client.http import _notes
from agent_gateway_client.http._decide import decide
from agent_gateway_client.http._known import known_gateways
from agent_gateway_client.http._opentelemetry import is_by_instrumentation
from agent_gateway_client.http._redirects import hops, must_remove, shares_hops
from agent_gateway_client.w3c import TRACEPARENT, TRACESTATE

_guard = Guard("Could not add the trace context to a request of urllib3; it is sent without it", "urllib3")


def _make_request(original: Callable[..., Any], switch: Switch) -> Any:
    def of_urllib3_2(
        pool: Any,
        conn: Any,
        method: str,
        url: str,
        body: Any,
        headers: Any,
        retries: Any,
        timeout: Any,
        chunked: Any,
        response_conn: Any,
        preload_content: Any,
        decode_content: Any,
        enforce_content_length: Any,
    ) -> Any:
        if switch.is_on:
            headers = _with_trace_context(pool, method, url, headers)
        return original(
            pool,
            conn,
            method,
            url,
            body,
            headers,
            retries,
            timeout,
            chunked,
            response_conn,
            preload_content,
            decode_content,
            enforce_content_length,
        )

    def of_another_version(pool: Any, conn: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if switch.is_on and (not args or "headers" in kwargs):
            given = kwargs.get("headers")
            headers = _with_trace_context(pool, method, url, given)
            if headers is not given:
                kwargs["headers"] = headers
        return original(pool, conn, method, url, *args, **kwargs)

    # With all parameters by name, Python passes on the arguments in a tenth of the time.
    names = [list(signature(function, follow_wrapped=False).parameters) for function in (original, of_urllib3_2)]
    if names[0][1:] != names[1][1:]:
        return of_another_version
    of_urllib3_2.__defaults__ = original.__defaults__
    return of_urllib3_2


def _with_trace_context(pool: Any, method: str, url: str, given: Any) -> Any:
    """Return the headers to send: the caller's, or a copy with the trace context. Never raises.

    Args:
        pool: The connection pool.
        method: The HTTP method.
        url: The path, or, with a proxy, the URL.
        given: The caller's headers, in any form that urllib3 accepts.
    """
    try:
        gateways = known_gateways(model_call.get())
        scheme, host, port, path = pool.scheme, pool.host, pool.port, url
        if "[" in host or not url.startswith("/"):
            scheme, host, port, path = _target(pool, url)
        near = gateways.near(scheme, host, port)
        if near is None and not hops.get() and not _notes.is_wanted_of_all():
            return given
        is_covered = near is not None and (path in near or gateways.covers(scheme, host, port, path))
        # The copy is faster to search.
        headers = _copy_of(given) if is_covered else given
        present = _traceparent_in(headers)
        seen = {} if present is None or is_by_instrumentation(present) else {TRACEPARENT: present}
        outcome, context = decide(method, scheme, host, port, path, seen, gateways, is_covered)
        if context is None and (present is None or not must_remove(outcome, present)):
            return given
        if not is_covered:
            headers = _copy_of(given)
        if present is not None:
            for key in [key for key in headers if _text(key).lower() in (TRACEPARENT, TRACESTATE)]:
                del headers[key]
        if context is not None:
            headers[TRACEPARENT] = context.traceparent
            if context.tracestate:
                headers[TRACESTATE] = context.tracestate
        return headers
    except Exception as error:
        _guard.caught(error)
        return given


def _rebuild_method(original: Callable[..., Any], switch: Switch) -> Any:
    def replacement(session: Any, prepared_request: Any, response: Any) -> Any:
        if switch.is_on:
            _leave_gateway(prepared_request, response.url)
        return original(session, prepared_request, response)

    return replacement


def _leave_gateway(request: Any, came_from: str) -> None:
    """Remove a ``traceparent`` of a span of this process from a redirect that leaves the gateways. Never raises."""
    try:
        present = request.headers.get(TRACEPARENT)
        if present is None or is_by_instrumentation(present := _text(present)):
            return
        gateways = known_gateways(model_call.get())
        if came_from in gateways and request.url not in gateways and is_local_span(present):
            for name in (TRACEPARENT, TRACESTATE):
                request.headers.pop(name, None)
    except Exception as error:
        _guard.caught(error)


def _target(pool: Any, url: str) -> tuple[str, str, int | None, str]:
    """Return scheme, host, port and path. With a proxy, the pool is the proxy's, and the URL is absolute."""
    if not url.startswith("/"):
        parts = urlsplit(url)
        if parts.scheme:
            return parts.scheme, parts.hostname or "", parts.port, parts.path
    return pool.scheme, pool.host.strip("[]"), pool.port, url


def _traceparent_in(headers: Any) -> str | None:
    for name in headers or ():
        if len(name) == len(TRACEPARENT) and _text(name).lower() == TRACEPARENT:
            return _text(headers[name])
    return None


def _copy_of(given: Any) -> Any:
    """Return a copy that keeps several values of a name; a dict if there are none, as other classes copy slowly."""
    if type(given) is dict:
        return given.copy()
    if given is None:
        return {}
    headers = dict(given.items())
    # urllib3's own class counts names, others count values.
    has_several = hasattr(given, "getlist") or len(headers) != len(given)
    return given.copy() if has_several and hasattr(given, "copy") else headers


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


REPLACEMENTS = {
    "urllib3.connectionpool:HTTPConnectionPool._make_request": _make_request,
    "urllib3.poolmanager:PoolManager.urlopen": shares_hops,
    "requests:Session.rebuild_method": _rebuild_method,
}
"""The methods and their replacements while :func:`agent_gateway_client.instrument` is active."""
