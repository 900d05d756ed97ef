"""The errors that this package raises.

None of them is raised while a request is being sent.
"""


class AgentGatewayError(Exception):
    """Base class of all errors of this package."""


class ConfigurationError(AgentGatewayError, ValueError):
    """An argument or a setting is invalid; the message says what is valid."""


class MissingDependencyError(AgentGatewayError, ImportError):
    """An optional package is not installed; the message has the install command."""


class StartError(AgentGatewayError, RuntimeError):
    """A server of the demo did not start; the message has its last lines."""


class NotFoundError(AgentGatewayError, LookupError):
    """A trace cannot be read; the message says where it was looked up."""
