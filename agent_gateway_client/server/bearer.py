"""Bearer tokens that the operator sets, and that open what is not for everybody."""

import hmac
import os
import re

from agent_gateway_client.errors import ConfigurationError

_TOKEN = re.compile(r"[\x21-\x7e]{16,}\Z")


def token_in(variable: str) -> str | None:
    """Return the token in a variable of the environment; ``None`` where it is not set or empty.

    Raises:
        ConfigurationError: The token is too short, or cannot be in a header.
    """
    token = os.environ.get(variable) or None
    if token is not None and not _TOKEN.match(token):
        raise ConfigurationError(f"{variable} has to be at least 16 printable ASCII characters without spaces.")
    return token


def is_opened_by(token: str, authorization: str | None) -> bool:
    """Tell whether an ``Authorization`` header has the token."""
    scheme, _, value = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(value.strip().encode(), token.encode())
