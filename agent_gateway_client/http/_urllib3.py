"""urllib3, and with it requests, boto3 and everything else that sends through its pools.

One method sends all requests of all pools, for each retry and each hop of a redirect, with the caller's headers, so a
header that is added there is never forwarded to another host. :mod:`._redirects` has the state that the hops share.
botocore has signed the request by then. Its signature covers only the headers that it lists, so adding one later is
valid.
"""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from agent_gateway_client._guard import Guard
from agent_gateway_client._patching import Switch
from agent_gateway_client.active_span import model_call
from agent_gateway_client.http._decide import decide
from agent_gateway_client.http._known import KnownGateways
from agent_gateway_client.http._opentelemetry import is_by_instrumentation
from agent_gateway_client.http._redirects import must_remove, shares_hops
from agent_gateway_client.w3c import TRACEPARENT, TRACESTATE

_guard = Guard("Could not add the trace context to a request of urllib3; it is sent without it", "urllib3")


def _make_request(original: Callable[..., Any], switch: Switch) -> Any:
    def _make_request(pool: Any, conn: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if switch.is_on and (not args or "headers" in kwargs):
            _add_headers(pool, method, url, kwargs)
        return original(pool, conn, method, url, *args, **kwargs)

    return _make_request


def _add_headers(pool: Any, method: str, url: str, kwargs: dict[str, Any]) -> None:
    with _guard:
        given = kwargs.get("headers")
        present = _value(given, TRACEPARENT)
        replaces = is_by_instrumentation(present)
        scheme, host, port, path = _target(pool, url)
        seen = {} if present is None or replaces else {TRACEPARENT: present}
        outcome, context = decide(method, scheme, host, port, path, seen, KnownGateways(model_call.get()))
        if context is not None:
            kwargs["headers"] = _with(given, context.to_headers(), replaced=present is not None)
        elif present is not None and must_remove(outcome, present):
            kwargs["headers"] = _with(given, {}, replaced=True)


def _target(pool: Any, url: str) -> tuple[str, str, int | None, str]:
    """Return scheme, host, port and path. With a proxy, the pool is the proxy's, and the URL is absolute."""
    if not url.startswith("/"):
        parts = urlsplit(url)
        if parts.scheme:
            return parts.scheme, parts.hostname or "", parts.port, parts.path
    return pool.scheme, pool.host.strip("[]"), pool.port, url


def _value(headers: Mapping[Any, Any] | None, name: str) -> str | None:
    for key, value in (headers or {}).items():
        if len(key) == len(name) and _text(key).lower() == name:
            return _text(value)
    return None


def _with(given: Any, ours: dict[str, str], replaced: bool) -> Any:
    headers = {} if given is None else given.copy() if hasattr(given, "copy") else dict(given)
    if replaced:
        for key in [key for key in headers if _text(key).lower() in (TRACEPARENT, TRACESTATE)]:
            del headers[key]
    for name, value in ours.items():
        headers[name] = value
    return headers


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


REPLACEMENTS = {
    "urllib3.connectionpool:HTTPConnectionPool._make_request": _make_request,
    "urllib3.poolmanager:PoolManager.urlopen": shares_hops,
    "requests:Session.send": shares_hops,
}
"""The methods and their replacements while :func:`agent_gateway_client.instrument` is active."""
