"""Bearer tokens that the operator sets to protect pages and routes."""

import hmac
import os
import re

from agent_gateway_client.errors import ConfigurationError

_TOKEN = re.compile(r"[\x21-\x7e]{16,}\Z")


def token_in(variable: str) -> str | None:
    """Return the token in an environment variable; ``None`` if it is unset or empty.

    Raises:
        ConfigurationError: The token is too short, or not valid in a header.
    """
    token = os.environ.get(variable) or None
    if token is not None and not _TOKEN.match(token):
        raise ConfigurationError(f"{variable} must be at least 16 printable ASCII characters without spaces.")
    return token


def is_opened_by(token: str, authorization: str | None) -> bool:
    """Return whether an ``Authorization`` header has the token."""
    scheme, _, value = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(value.strip().encode(), token.encode())
