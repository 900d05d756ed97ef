"""The package's logger, and warnings that are said once."""

import logging
from importlib import metadata

logger = logging.getLogger("agent_gateway_client")

_said: set[str] = set()


def warn_once(key: str, message: str, *args: object) -> None:
    """Log a warning the first time ``key`` is seen in this process, and nothing after that."""
    if key not in _said:
        _said.add(key)
        logger.warning(message, *args)


def version_of(distribution: str) -> str:
    """Return the installed version of a distribution, or ``"unknown"``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"
