"""Every error this package raises on purpose, in one tree.

None of them is raised while a request is on its way.
"""


class AgentGatewayError(Exception):
    """The base of all errors of this package."""


class ConfigurationError(AgentGatewayError, ValueError):
    """A value that was given to this package cannot work; the message says what to give instead."""


class MissingDependencyError(AgentGatewayError, ImportError):
    """An optional package is not installed; the message names the extra to install."""


class StartError(AgentGatewayError, RuntimeError):
    """A server of the demo did not start; the message carries its last lines."""


class NotFoundError(AgentGatewayError, LookupError):
    """A trace cannot be read; the message says where it was looked for."""
