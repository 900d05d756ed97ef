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
from agent_gateway_client.http import _notes
from agent_gateway_client.http._decide import decide
from agent_gateway_client.http._known import KnownGateways, instrumented_gateways
from agent_gateway_client.http._opentelemetry import is_by_instrumentation
from agent_gateway_client.http._redirects import hops, must_remove, shares_hops
from agent_gateway_client.w3c import TRACEPARENT, TRACESTATE

_guard = Guard("Could not add the trace context to a request of urllib3; it is sent without it", "urllib3")


def _make_request(original: Callable[..., Any], switch: Switch) -> Any:
    def _make_request(pool: Any, conn: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        if switch.is_on and (not args or "headers" in kwargs):
            _add_headers(pool, method, url, kwargs)
        return original(pool, conn, method, url, *args, **kwargs)

    return _make_request


def _add_headers(pool: Any, method: str, url: str, kwargs: dict[str, Any]) -> None:
    try:
        call = model_call.get()
        gateways = instrumented_gateways() if call is None else KnownGateways(call)
        scheme, host, port, path = _target(pool, url)
        if not gateways.is_near(scheme, host, port) and not hops.get() and not _notes.is_wanted_of_all():
            return
        headers = _Headers(kwargs.get("headers"))
        outcome, context = decide(method, scheme, host, port, path, headers, gateways)
        if context is not None:
            kwargs["headers"] = _with(headers.given, context.to_headers(), replaced=headers.traceparent is not None)
        elif headers.traceparent is not None and must_remove(outcome, headers.traceparent):
            kwargs["headers"] = _with(headers.given, {}, replaced=True)
    except Exception as error:
        _guard.caught(error)


class _Headers:
    """A request's headers. A ``traceparent`` that OpenTelemetry's instrumentation has set counts as absent.

    Attributes:
        given: The caller's headers, in any form that urllib3 accepts.
        traceparent: The ``traceparent``, even if OpenTelemetry's instrumentation has set it.
    """

    __slots__ = ("given", "traceparent")

    def __init__(self, given: Mapping[Any, Any] | None) -> None:
        self.given = given
        self.traceparent: str | None = None
        if given is not None:
            for name in given:
                if len(name) == len(TRACEPARENT) and _text(name).lower() == TRACEPARENT:
                    self.traceparent = _text(given[name])
                    break

    def get(self, name: str, /) -> str | None:
        """Return the ``traceparent``, the only header that is read."""
        present = self.traceparent
        return None if is_by_instrumentation(present) else present

    def __contains__(self, name: str, /) -> bool:
        return self.get(name) is not None

    def __getitem__(self, name: str, /) -> str:
        return self.get(name) or ""


def _target(pool: Any, url: str) -> tuple[str, str, int | None, str]:
    """Return scheme, host, port and path. With a proxy, the pool is the proxy's, and the URL is absolute."""
    if not url.startswith("/"):
        parts = urlsplit(url)
        if parts.scheme:
            return parts.scheme, parts.hostname or "", parts.port, parts.path
    return pool.scheme, pool.host.strip("[]"), pool.port, url


def _with(given: Any, ours: dict[str, str], replaced: bool) -> Any:
    headers = {} if given is None else _copy_of(given)
    if replaced:
        for key in [key for key in headers if _text(key).lower() in (TRACEPARENT, TRACESTATE)]:
            del headers[key]
    for name, value in ours.items():
        headers[name] = value
    return headers


def _copy_of(given: Any) -> Any:
    """Return a copy that keeps several values of a name; a dict if there are none, as other classes copy slowly."""
    headers = dict(given.items())
    # urllib3's own class counts names, others count values.
    has_several = hasattr(given, "getlist") or len(headers) != len(given)
    return given.copy() if has_several and hasattr(given, "copy") else headers


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


REPLACEMENTS = {
    "urllib3.connectionpool:HTTPConnectionPool._make_request": _make_request,
    "urllib3.poolmanager:PoolManager.urlopen": shares_hops,
    "requests:Session.send": shares_hops,
}
"""The methods and their replacements while :func:`agent_gateway_client.instrument` is active."""
