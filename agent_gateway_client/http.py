"""Puts the trace context on a request: httpx and httpx2 clients, and anything else by hand.

A request event hook is called for every request a client sends, for each retry and each hop of a redirect, with the URL
as it goes out. httpx copies all headers but ``Authorization`` to a redirect's target, so the hook also takes its own
headers off again where a redirect leaves the gateway.
"""

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from agent_gateway_client._log import logger, version_of, warn_once
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE, Gateways, gateways_for_client
from agent_gateway_client.propagation import TRACEPARENT, current_trace_context, is_received, model_call

ClientT = TypeVar("ClientT")


class _TakesHooks(Protocol):
    """What the clients of httpx and httpx2, sync and async, have in common as far as it matters here."""

    event_hooks: Any

    @property
    def base_url(self) -> object: ...


HTTPXClientT = TypeVar("HTTPXClientT", bound=_TakesHooks)

_SENT_BY_US = "agent_gateway_client.headers"
"""The key in a request's extensions that holds the headers this package has set on it."""


def wrap_httpx(client: HTTPXClientT, gateways: Iterable[str] | None = None) -> HTTPXClientT:
    """Make a client put the trace context on every request that it sends to a gateway.

    The context is that of the innermost active span at the time of the request. A ``traceparent`` that the request
    already has stays. Wrapping a client again adds to its gateways.

    Args:
        client: An ``httpx`` or ``httpx2`` client, sync or async; it is changed in place.
        gateways: ``scheme://host[:port][/prefix]`` each. By default the client's own ``base_url``, and those in
            ``AGENT_GATEWAY_URLS``.

    Returns:
        The same object.

    Raises:
        ConfigurationError: ``client`` is no httpx client, no gateway is named, or a name is no URL.
    """
    if not _takes_hooks(client):
        raise ConfigurationError(
            f"wrap_httpx() takes an httpx or httpx2 client, not {type(client).__qualname__}. For an OpenAI client "
            "there is wrap_openai(); for anything else, trace_headers(url)."
        )
    base_url = str(getattr(client, "base_url", ""))
    add_hook(client, gateways_for_client(base_url, gateways))
    return client


def unwrap(client: ClientT) -> ClientT:
    """Take off what :func:`wrap_httpx` or ``wrap_openai`` put on.

    Clients that share one HTTP client (an OpenAI client and its ``with_options()`` copies) are unwrapped together. A
    client that was never wrapped is left as it is.

    Returns:
        The same object.
    """
    http_client: Any = client if _takes_hooks(client) else getattr(client, "_client", None)
    if _takes_hooks(http_client) and hook_of(http_client) is not None:
        hooks = http_client.event_hooks
        kept = [hook for hook in hooks["request"] if not isinstance(hook, _RequestHook)]
        http_client.event_hooks = {**hooks, "request": kept}
    return client


def trace_headers(url: object, gateways: Iterable[str] | None = None) -> dict[str, str]:
    """Return the headers that a request to ``url`` should carry, for a client that this package does not know.

    Args:
        url: Where the request goes; ``ws://`` and ``wss://`` count as the HTTP they start from.
        gateways: ``scheme://host[:port][/prefix]`` each. By default those in ``AGENT_GATEWAY_URLS``, and those of every
            ``instrument()`` that is in force, and inside a gateway those behind it.

    Returns:
        ``{"traceparent": …}``, with ``tracestate`` where there is one. Empty where ``url`` is no gateway or no span is
        active.

    Raises:
        ConfigurationError: ``gateways`` was given and holds what is no URL.
    """
    known = Gateways(gateways) if gateways is not None else _known_gateways()
    if url not in known:
        return {}
    try:
        context = current_trace_context()
    except Exception as error:
        warn_once(
            "trace_headers",
            "trace_headers() could not read the active span (%r); no trace context is sent. Upgrade "
            "agent-gateway-client.",
            error,
        )
        return {}
    return context.to_headers() if context else {}


def _known_gateways() -> Gateways:
    # It stands on this module.
    from agent_gateway_client.instrumentation import instrumented_gateways

    call = model_call.get()
    known = instrumented_gateways() | call.gateways if call else instrumented_gateways()
    try:
        return Gateways.from_environment() | known
    except ConfigurationError as error:
        warn_once("trace_headers.environment", "%s is left out: %s", GATEWAY_URLS_VARIABLE, error)
        return known


def add_hook(client: Any, gateways: Gateways) -> None:
    """Add the hook to a client that takes event hooks, or the gateways to the hook that it has."""
    hook = hook_of(client)
    if hook is not None:
        hook.gateways |= gateways
        return
    is_async = hasattr(client, "__aenter__")
    hooks = client.event_hooks
    hook = (_AsyncRequestHook if is_async else _RequestHook)(gateways)
    # Behind the user's own hooks: a traceparent that one of them sets stays.
    client.event_hooks = {**hooks, "request": [*hooks["request"], hook]}


class KnowsGateways(Protocol):
    """One or more sets of gateways."""

    def covers(self, scheme: str, host: str, port: int | None, path: str) -> bool:
        """Tell what :meth:`Gateways.covers` does."""


def propagate(request: Any, gateways: KnowsGateways) -> None:
    """Put the current trace context on an httpx request to a gateway; take ours off one that leaves. Never raises."""
    try:
        url = request.url
        headers = request.headers
        extensions = request.extensions
        if _SENT_BY_US in extensions:
            # Ours from an earlier hop, or from when the same request was sent before, says nothing about this one.
            for name, value in extensions.pop(_SENT_BY_US).items():
                if headers.get(name) == value:
                    del headers[name]
        host, path = url.raw_host.decode("ascii"), url.raw_path.decode("ascii")
        if not gateways.covers(url.scheme, host, url.port, path):
            return
        if TRACEPARENT in headers and not is_received(headers.get(TRACEPARENT)):
            return
        context = current_trace_context()
        if context is not None:
            sent = context.to_headers()
            # httpx's update() takes four times as long.
            for name, value in sent.items():
                headers[name] = value
            extensions[_SENT_BY_US] = sent
    except Exception:
        logger.debug("The trace context was not put on a request", exc_info=True)
        warn_once(
            "http.propagate",
            "The trace context could not be put on a request (httpx %s, httpx2 %s); the request was sent without it. "
            "Details are logged at level DEBUG.",
            version_of("httpx"),
            version_of("httpx2"),
        )


class _RequestHook:
    def __init__(self, gateways: Gateways) -> None:
        self.gateways = gateways

    def __call__(self, request: Any) -> Any:
        propagate(request, self.gateways)


class _AsyncRequestHook(_RequestHook):
    async def __call__(self, request: Any) -> None:
        propagate(request, self.gateways)


def _takes_hooks(client: Any) -> bool:
    return not isinstance(client, type) and hasattr(client, "event_hooks") and hasattr(client, "base_url")


def hook_of(client: Any) -> _RequestHook | None:
    """Return the hook of a client that takes event hooks; ``None`` where it is not wrapped."""
    return next((hook for hook in client.event_hooks["request"] if isinstance(hook, _RequestHook)), None)
