"""The MLflow AI Gateway, as an ``mlflow.app`` plugin: ``mlflow server --app-name agent-gateway``.

It uses two public extension points. The plugin wraps MLflow's ASGI application, so it sees each request before MLflow
does, and a span processor on MLflow's tracer provider collects the gateway's own spans. Their facts (endpoint, provider
attempts, tokens) are read after the call, in the exporter's thread.

MLflow never sees the caller's ``traceparent``: it would write a second, incomplete mirror, and forward the header to
the provider on its passthrough and proxy routes.
"""

from importlib.util import find_spec

from agent_gateway_client._install import install_command
from agent_gateway_client.errors import MissingDependencyError

if find_spec("mlflow.server") is None:
    # The package mlflow-tracing, which agents use, has the same import name.
    raise MissingDependencyError(f"MLflow's server is not installed: {install_command('mlflow-gateway')}")

from agent_gateway_client.server.mlflow_gateway._app import MlflowGateway, check_environment, create_app

__all__ = ["MlflowGateway", "create_app"]

# MLflow imports this module before it starts its workers. An invalid value ends `mlflow server` here with one error; in
# the workers it would make uvicorn restart them forever.
check_environment()
