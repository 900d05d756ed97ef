"""OpenAI's SDK, 2.x (httpx) and 3.x (httpx2)."""

import re
from collections.abc import Iterable
from typing import Any, TypeVar

from agent_gateway_client._guard import Guard
from agent_gateway_client._install import install_command
from agent_gateway_client.errors import ConfigurationError, MissingDependencyError
from agent_gateway_client.gateways import gateways_for_client
from agent_gateway_client.http._clients import COPYING, Wrap, wrap

try:
    from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
except ModuleNotFoundError as error:
    if error.name != "openai":
        raise
    raise MissingDependencyError(f"wrap_openai() needs the package openai: {install_command('openai')}") from None

_guard = Guard("Could not find the HTTP client inside an OpenAI client; it sends no trace context", "openai")

ClientT = TypeVar("ClientT", bound=OpenAI | AsyncOpenAI)


def wrap_openai(client: ClientT, *, gateways: Iterable[str] | None = None) -> ClientT:
    """Make an OpenAI client add the trace context to every request that it sends to its gateway.

    All resources and methods are covered, with retries and redirects, and the copies that ``with_options()`` and
    ``copy()`` create. A ``traceparent`` that a request already has is kept: that of ``mlflow.openai.autolog()``, which
    is more specific, or one from ``extra_headers``. Idempotent.

    Args:
        client: ``OpenAI``, ``AsyncOpenAI``, ``AzureOpenAI`` or ``AsyncAzureOpenAI``; it is changed in place.
        gateways: ``scheme://host[:port][/prefix]`` each. By default the client's own ``base_url``, and those in
            ``AGENT_GATEWAY_URLS``.

    Returns:
        The same object.

    Raises:
        ConfigurationError: ``client`` is not an OpenAI client, its ``base_url`` is a vendor's public API, or a gateway
            is not a URL.
    """
    given: object = client
    if not isinstance(given, OpenAI | AsyncOpenAI):
        name = given.__name__ if isinstance(given, type) else type(given).__qualname__
        raise ConfigurationError(
            f"wrap_openai() takes an OpenAI client like OpenAI(base_url='http://localhost:5000/gateway/openai/v1'), "
            f"not {name}. For an httpx client use wrap_httpx(); for anything else, trace_headers(url)."
        )
    base_url = str(client.base_url)
    if isinstance(client, AzureOpenAI | AsyncAzureOpenAI):
        # With azure_deployment, some calls go to a path outside of the deployment.
        base_url = re.sub(r"/deployments/[^/]+/?$", "/", base_url)
    known = gateways_for_client(base_url, gateways)
    with _guard:
        _wrap_copies(wrap(client, client._client, known), client)
    return client


def _wrap_copies(wrap: Wrap, client: Any) -> None:
    """Replace the client's copying methods, to wrap copies that get a different HTTP client."""
    for name in COPYING:
        if hasattr(type(client), name):
            setattr(client, name, _copying(name, wrap, client))


def _copying(name: str, wrap: Wrap, client: Any) -> Any:
    def copy(*args: Any, **kwargs: Any) -> Any:
        copied = getattr(type(client), name)(client, *args, **kwargs)
        if wrap.is_on and hasattr(getattr(copied, "_client", None), "event_hooks"):
            wrap.put_on(copied, copied._client)
            _wrap_copies(wrap, copied)
        return copied

    vars(copy)["copies_wrap"] = True
    return copy
