"""One trace from the LLM agent to the model.

The client half of the project adds the W3C ``traceparent`` of the innermost active MLflow span to requests to LLM
gateways, and to no other request. Its names are loaded at the first use, so importing this package imports neither
frameworks nor MLflow. The half that runs in the gateway is :mod:`agent_gateway_client.server`.
"""

from agent_gateway_client._version import __version__

# Type checkers recognize the name; importing typing would take longer than the rest of this module.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from agent_gateway_client.http import instrument, trace_headers, uninstrument, unwrap, wrap_httpx
    from agent_gateway_client.langchain import GatewayCallbackHandler
    from agent_gateway_client.litellm import instrument_litellm
    from agent_gateway_client.openai import wrap_openai
    from agent_gateway_client.traces.notebook import show_trace

__all__ = [
    "GatewayCallbackHandler",
    "__version__",
    "instrument",
    "instrument_litellm",
    "show_trace",
    "trace_headers",
    "uninstrument",
    "unwrap",
    "wrap_httpx",
    "wrap_openai",
]

_HOME = {
    "GatewayCallbackHandler": "langchain",
    "instrument": "http",
    "instrument_litellm": "litellm",
    "show_trace": "traces.notebook",
    "trace_headers": "http",
    "uninstrument": "http",
    "unwrap": "http",
    "wrap_httpx": "http",
    "wrap_openai": "openai",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from agent_gateway_client.errors import MissingDependencyError

    try:
        value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except MissingDependencyError as error:
        return _missing(name, str(error))
    globals()[name] = value
    return value


def _missing(name: str, problem: str) -> object:
    """Return a placeholder for a name whose package is not installed, so that ``import *`` and help() work."""

    def missing(*args: object, **kwargs: object) -> object:
        from agent_gateway_client.errors import MissingDependencyError

        raise MissingDependencyError(problem)

    missing.__name__ = missing.__qualname__ = name
    missing.__doc__ = problem
    return missing


def __dir__() -> list[str]:
    return sorted(__all__)
