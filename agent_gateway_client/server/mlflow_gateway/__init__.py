"""The MLflow AI Gateway, as an ``mlflow.app`` plugin: ``mlflow server --app-name agent-gateway``.

Two of MLflow's public extension points are enough. The plugin wraps MLflow's ASGI application, so it sees each request
before MLflow does; and MLflow's tracer provider takes a span processor, which sees the gateway's own spans begin. What
those spans know (endpoint, provider attempts, tokens) is read from them after the call, in the exporter's thread.

MLflow never sees the caller's ``traceparent``: it would add a second, half-working mirror, and send the header on to
the provider through its passthrough and proxy routes.
"""

from importlib.util import find_spec

from agent_gateway_client._install import install_command
from agent_gateway_client.errors import MissingDependencyError

if find_spec("mlflow.server") is None:
    # mlflow-tracing, which an agent has, is a part of MLflow under the same name.
    raise MissingDependencyError(f"MLflow's server is not installed: {install_command('mlflow-gateway')}")

from agent_gateway_client.server.mlflow_gateway._app import MlflowGateway, check_environment, create_app

__all__ = ["MlflowGateway", "create_app"]

# MLflow imports this module once before it starts its workers. A value that cannot work ends `mlflow server` here, with
# one error; in the workers, uvicorn would start them again and again.
check_environment()
