"""The guard for our code inside a user's call: an error of ours must not fail the call."""

import os
from types import TracebackType

from agent_gateway_client._log import logger, version_of, warn_once

reraises = "AGENT_GATEWAY_RAISE_INTERNAL_ERRORS" in os.environ
"""Whether guards let errors through. The tests set the variable, so that a hidden bug fails a test."""


class Guard:
    """A context manager that suppresses errors, logs them at level DEBUG, and warns about the first one.

    Stateless: a guard can be shared by threads and nested.

    Args:
        failure: The first part of the warning: what failed, and the consequence for the user.
        *distributions: The distributions whose internals the code uses. The warning has their versions.
    """

    __slots__ = ("_distributions", "_failure")

    def __init__(self, failure: str, *distributions: str) -> None:
        self._failure = failure
        self._distributions = distributions

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or reraises or not isinstance(error, Exception):
            return False
        self.caught(error)
        return True

    def caught(self, error: Exception) -> None:
        """Do the same with an error that was caught, where a context manager takes too long: per request.

        Raises:
            Exception: The error, under the tests.
        """
        if reraises:
            raise error
        logger.debug(self._failure, exc_info=error)
        versions = ", ".join(f"{name} {version_of(name)}" for name in self._distributions)
        warn_once(
            self._failure,
            "%s (%s%s). Upgrade agent-gateway-client if there is a newer version; details are logged at level DEBUG.",
            self._failure,
            type(error).__name__,
            f" with {versions}" if versions else "",
        )
