"""Decides which URLs are gateways."""

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from agent_gateway_client._near_miss import LOOPBACK, near_miss
from agent_gateway_client.errors import ConfigurationError

GATEWAY_URLS_VARIABLE = "AGENT_GATEWAY_URLS"

_DEFAULT_PORTS = {"http": 80, "https": 443}
_WEBSOCKET_SCHEMES = {"ws": "http", "wss": "https"}

_VENDORS = (
    "api.openai.com",
    "*.api.openai.com",
    "*.openai.azure.com",
    "*.openai.azure.us",
    "*.openai.azure.cn",
    "*.cognitiveservices.azure.com",
    "*.services.ai.azure.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "aiplatform.googleapis.com",
    "*-aiplatform.googleapis.com",
    "bedrock*.amazonaws.com",
    "bedrock*.api.aws",
    "api.mistral.ai",
    "api.groq.com",
    "api.deepseek.com",
    "api.x.ai",
    "api.cohere.com",
    "api.cohere.ai",
    "api.together.xyz",
    "api.together.ai",
    "api.fireworks.ai",
    "api.perplexity.ai",
    "api.cerebras.ai",
    "openrouter.ai",
    "router.huggingface.co",
    "integrate.api.nvidia.com",
)
"""Hosts of model vendors' public APIs; ``*`` stands for any characters."""

_MAX_SEEN = 1_000
"""Origins, and paths of an origin, that are remembered. If there are more, the others are looked up each time."""

_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\Z")

Origin = tuple[str, str, int]
"""Scheme (http or https), host (see ``_plain_host``) and port."""


class Gateways:
    """An immutable set of gateways, each ``scheme://host[:port][/prefix]``.

    A URL belongs to a gateway when scheme, host and port are the same and its path is the prefix or lies below it:
    ``/gateway`` covers ``/gateway/v1`` and not ``/gateway2``.
    """

    __slots__ = ("_near_hosts", "_prefixes", "_seen", "urls")

    def __init__(self, urls: Iterable[str]) -> None:
        """Read the gateways.

        Raises:
            ConfigurationError: A value has no scheme or host, another scheme than http or https, or a bad port.
        """
        if isinstance(urls, str):
            raise ConfigurationError(
                f"gateways must be a list of URLs, not one string; write gateways=[{_without_credentials(urls)}]."
            )
        if not isinstance(urls, Iterable):
            raise ConfigurationError(f"gateways must be a list of URLs, not {type(urls).__qualname__}.")
        self._prefixes: dict[Origin, tuple[str, ...]] = {}
        kept: dict[str, None] = {}
        for url in urls:
            origin, prefix = _read(url)
            prefixes = self._prefixes.get(origin, ())
            if prefix not in prefixes:
                prefixes = (*prefixes, prefix)
            self._prefixes[origin] = prefixes
            kept[url] = None
        self._seen: dict[tuple[str, str, int | None], set[str] | None] = {}
        """The results of :meth:`near` by origins as requests spell them; at most :data:`_MAX_SEEN`."""
        self.urls: tuple[str, ...] = tuple(kept)
        hosts = frozenset(host for _, host, _ in self._prefixes)
        self._near_hosts = hosts | LOOPBACK if hosts & LOOPBACK else hosts

    @classmethod
    def from_environment(cls) -> "Gateways":
        """Read ``AGENT_GATEWAY_URLS`` (comma separated; unset or empty: no gateway).

        Raises:
            ConfigurationError: As for the constructor; the message names the variable.
        """
        value = os.environ.get(GATEWAY_URLS_VARIABLE, "")
        try:
            return cls([url for part in value.split(",") if (url := part.strip())])
        except ConfigurationError as error:
            raise ConfigurationError(f"In the environment variable {GATEWAY_URLS_VARIABLE}: {error}") from None

    def covers(self, scheme: str, host: str, port: int | None, path: str) -> bool:
        """Return whether a request with these URL parts goes to one of the gateways.

        Args:
            scheme: In lower case; ``ws`` and ``wss`` are treated as ``http`` and ``https``.
            host: In any case, with or without a trailing dot; an IPv6 address without brackets.
            port: ``None`` for the scheme's default.
            path: As it is sent, with or without the query.
        """
        known = self.near(scheme, host, port)
        if known is None:
            return False
        if path in known:
            return True
        is_covered = any(_is_below(path, prefix) for prefix in self._prefixes_at(scheme, host, port))
        if is_covered and len(known) < _MAX_SEEN and "?" not in path:
            known.add(path)
        return is_covered

    def near(self, scheme: str, host: str, port: int | None) -> set[str] | None:
        """Return whether a request to this origin may go to one of the gateways, or miss it by little.

        Fast, so that neither path nor headers are read of the requests that have nothing to do with a gateway.

        Returns:
            ``None`` if no request to this origin does, else some of the paths that are covered.
        """
        try:
            return self._seen[scheme, host, port]
        except KeyError:
            is_near = host in self._near_hosts or self._prefixes_at(scheme, host, port)
        known: set[str] | None = set() if is_near else None
        if len(self._seen) < _MAX_SEEN:
            self._seen[scheme, host, port] = known
        return known

    def _prefixes_at(self, scheme: str, host: str, port: int | None) -> tuple[str, ...]:
        plain_scheme = _WEBSOCKET_SCHEMES.get(scheme, scheme)
        origin = (plain_scheme, _plain_host(host), port or _DEFAULT_PORTS.get(plain_scheme, 0))
        return self._prefixes.get(origin, ())

    def near_miss(self, scheme: str, host: str, port: int | None, path: str) -> str | None:
        """Return why a request misses a gateway by little; ``None`` for most requests."""
        if host not in self._near_hosts:
            return None
        path = path.partition("?")[0]
        origins = (
            (*origin, prefix, _is_below(path, prefix))
            for origin, prefixes in self._prefixes.items()
            for prefix in prefixes
        )
        return near_miss(origins, _WEBSOCKET_SCHEMES.get(scheme, scheme), host, port, path)

    def __contains__(self, url: object) -> bool:
        """Return whether a URL goes to one of the gateways; ``False`` for an invalid URL."""
        text = str(url)
        if "\\" in text.partition("?")[0]:
            # Some clients treat it as a slash, and so connect to a different host.
            return False
        try:
            parts = urlsplit(text)
            return self.covers(parts.scheme, parts.hostname or "", parts.port, parts.path)
        except ValueError:
            return False

    def __or__(self, other: "Gateways") -> "Gateways":
        return _union(self, other)

    def __iter__(self) -> Iterator[str]:
        return iter(self.urls)

    def __bool__(self) -> bool:
        return bool(self.urls)

    def __repr__(self) -> str:
        return f"Gateways([{', '.join(map(_without_credentials, self.urls))}])"


# Cached, because a request may need the union of several sets.
@lru_cache(maxsize=32)
def _union(one: Gateways, other: Gateways) -> Gateways:
    return Gateways((*one.urls, *other.urls))


NO_GATEWAYS = Gateways(())


def gateways_for_client(base_url: str, gateways: Iterable[str] | None) -> Gateways:
    """Return the gateways of a wrapped client.

    Args:
        base_url: The client's base URL, or ``""``.
        gateways: The user's gateways; ``None`` to trust ``base_url`` and ``AGENT_GATEWAY_URLS``.

    Raises:
        ConfigurationError: No gateway is configured, a value is not a URL, or ``base_url`` is a vendor's public API.
    """
    if gateways is not None:
        given = Gateways(gateways)
        if not given:
            raise ConfigurationError("gateways is empty; give at least one, like gateways=['http://localhost:5000'].")
        return given
    if not base_url:
        given = Gateways.from_environment()
        if not given:
            raise ConfigurationError(
                "No gateway is configured: the client has no base_url. Give gateways=['http://host:port/prefix'], or "
                f"set {GATEWAY_URLS_VARIABLE}."
            )
        return given
    own = Gateways([base_url])
    if vendor := _vendor_host(base_url):
        raise ConfigurationError(
            f"The client's base_url is {vendor}, a model vendor's public API, not a gateway; the trace context would "
            "be sent to the vendor. Set base_url to the gateway's URL, or, if this really is a gateway, pass "
            f"gateways=[{_without_credentials(base_url)}]."
        )
    return own | Gateways.from_environment()


def _read(url: str) -> tuple[Origin, str]:
    hint = "a gateway is scheme://host[:port][/prefix], like http://localhost:5000/gateway"
    if not isinstance(url, str):
        raise ConfigurationError(f"{url!r} is not a gateway URL: {hint}.")
    shown = _without_credentials(url)
    try:
        parts: SplitResult = urlsplit(url.strip())
        if "," in parts.netloc.rpartition("@")[2] or ",http" in parts.path:
            raise ConfigurationError(f"{shown} has a comma (give several gateways as several values): {hint}.")
        host, port = parts.hostname, parts.port
    except ConfigurationError:
        raise
    except ValueError as error:
        raise ConfigurationError(f"{shown} is not a gateway URL ({error}): {hint}.") from None
    if parts.scheme not in _DEFAULT_PORTS:
        problem = f"has the scheme {parts.scheme!r}" if "://" in url else "has no scheme"
        raise ConfigurationError(f"{shown} {problem}: {hint}.")
    if not host or not host.strip(".") or any(character.isspace() for character in host):
        raise ConfigurationError(f"{shown} has no host: {hint}.")
    if "*" in parts.netloc + parts.path:
        raise ConfigurationError(f"{shown} has a '*', but patterns are not supported: {hint}.")
    if "\\" in url:
        raise ConfigurationError(f"{shown} has a backslash: {hint}.")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{shown} has a query or a fragment: {hint}.")
    if port == 0:
        raise ConfigurationError(f"{shown} has the port 0: {hint}.")
    prefix = unquote(parts.path).rstrip("/")
    if ".." in prefix.split("/"):
        raise ConfigurationError(f"{shown} has a path with '..': {hint}.")
    try:
        host = _plain_host(host)
    except UnicodeError:
        host = ""
    if ":" not in host and not _HOST_NAME.match(host):
        raise ConfigurationError(f"{shown} has a host that is neither a name nor an address: {hint}.")
    return (parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme]), prefix


def _plain_host(host: str) -> str:
    """Normalize a host: lower case, no trailing dot, international names in ASCII."""
    host = host.lower().rstrip(".")
    if host.isascii():
        return host
    # A dependency of every HTTP client and of mlflow-tracing; Python's own codec implements IDNA 2003.
    import idna

    return idna.encode(host, uts46=True).decode()


def _is_below(path: str, prefix: str) -> bool:
    # Nearly all paths are plain, and the rest of the rule costs more than all other checks of a request.
    is_plain = "%" not in path and ".." not in path and "\\" not in path and "?" not in path
    if not is_plain:
        path = path.partition("?")[0]
        path = unquote(path)
        if "\\" in path:
            return False
    if not prefix:
        return True
    if not path.startswith(prefix) or (len(path) > len(prefix) and path[len(prefix)] != "/"):
        return False
    # A server resolves dot segments, so a path with one may lead anywhere.
    return is_plain or ".." not in unquote(path).replace("\\", "/").split("/")


def flatten(urls: Iterable[object]) -> list[Any]:
    """Return the URLs in arguments that may be URLs or lists of URLs."""
    flat: list[Any] = []
    for given in urls:
        if isinstance(given, Iterable) and not isinstance(given, str | bytes):
            flat.extend(given)
        else:
            flat.append(given)
    return flat


def _vendor_host(url: str) -> str | None:
    host = _plain_host(urlsplit(url).hostname or "")
    return host if any(fnmatchcase(host, vendor) for vendor in _VENDORS) else None


def _without_credentials(url: str) -> str:
    """Return a URL in quotes without its credentials, for messages, which may be logged."""
    return repr(re.sub(r"//[^/@]*@", "//***@", url))
