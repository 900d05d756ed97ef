"""httpx and httpx2 clients: wrapped, each puts the trace context on its own requests to gateways."""

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.gateways import Gateways, gateways_for_client
from agent_gateway_client.http._propagate import propagate

ClientT = TypeVar("ClientT")


class _TakesHooks(Protocol):
    """What the clients of httpx and httpx2, sync and async, have in common as far as it matters here."""

    event_hooks: Any

    @property
    def base_url(self) -> object: ...


HTTPXClientT = TypeVar("HTTPXClientT", bound=_TakesHooks)


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
