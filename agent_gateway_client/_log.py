"""The package's logger, and warnings that are logged once."""

import logging
from importlib import metadata

logger = logging.getLogger("agent_gateway_client")

_warned: set[str] = set()


def warn_once(key: str, message: str, *args: object) -> None:
    """Log a warning if this is the first one with this key in the process."""
    if key not in _warned:
        _warned.add(key)
        logger.warning(message, *args)


def version_of(distribution: str) -> str:
    """Return the installed version of a distribution, or ``"unknown"``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"
