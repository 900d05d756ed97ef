"""A real MLflow AI Gateway on this machine: SQLite, ``mlflow server``, endpoints, a local model provider.

Example:
    with DemoGateway(progress=print) as gateway:
        client = openai.OpenAI(base_url=gateway.openai_base_url, api_key="none")
"""

from __future__ import annotations

import atexit
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from agent_gateway_client.demo._endpoints import Endpoints
from agent_gateway_client.demo._server import MlflowServer
from agent_gateway_client.demo._warm_up import warm_up
from agent_gateway_client.demo.provider import Provider
from agent_gateway_client.errors import StartError

_NOT_RUNNING = "The gateway is not running; call start() or use `with DemoGateway()`."


class EndpointSpec(NamedTuple):
    """An endpoint of the demo.

    Attributes:
        models: Model names; the first is the primary one, the others are fallbacks.
        provider: MLflow's name of their provider.
        usage_tracking: Whether MLflow traces the calls.
    """

    models: tuple[str, ...]
    provider: str = "openai"
    usage_tracking: bool = True


ENDPOINTS: dict[str, EndpointSpec] = {
    "chat": EndpointSpec(("gpt-4o-mini",)),
    "slow": EndpointSpec(("gpt-4o-mini-slow",)),
    "failing": EndpointSpec(("gpt-4o-mini-fail-500",)),
    "fallback": EndpointSpec(("gpt-4o-fail-503", "gpt-4o-mini")),
    "embeddings": EndpointSpec(("text-embedding-3-small",)),
    "responses": EndpointSpec(("gpt-4o-mini",)),
    "claude": EndpointSpec(("claude-3-5-haiku-20241022",), provider="anthropic"),
    # MLflow's Gemini provider only calls Google. Its Databricks provider uses the same API with a configurable
    # address.
    "gemini": EndpointSpec(("gemini-2.0-flash",), provider="databricks"),
    "untracked": EndpointSpec(("gpt-4o-mini",), usage_tracking=False),
    "broken": EndpointSpec(("gpt-4o-mini-broken",)),
    "long": EndpointSpec(("gpt-4o-mini-long",)),
}
"""The endpoints of every `DemoGateway`."""


class DemoGateway:
    """A gateway, as a context manager that starts it and stops it for good.

    Args:
        app_name: Value of ``mlflow server --app-name``; None runs MLflow without the companion.
        port: TCP port on 127.0.0.1; None for a free one.
        env: Environment variables for the server.
        backend_store_uri: MLflow's backend store; None for a SQLite file in the directory.
        directory: Where to keep files; None for a temporary directory, which is deleted at the end.
        progress: Called with a sentence about each step.
        credentials: User name and password of an administrator, if the server requires them.
        options: More command line options of ``mlflow server``.
        provider: The model provider; None for a `Provider`.

    Raises:
        StartError: From `start`, with the server's last lines.
    """

    def __init__(
        self,
        app_name: str | None = "agent-gateway",
        *,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        backend_store_uri: str | None = None,
        directory: str | Path | None = None,
        progress: Callable[[str], None] | None = None,
        credentials: tuple[str, str] | None = None,
        options: Sequence[str] = (),
        provider: Provider | None = None,
    ) -> None:
        self.provider = provider or Provider()
        self._app_name = app_name
        self._port = port
        self._env = dict(env or {})
        self._backend_store_uri = backend_store_uri
        self._directory = Path(directory).resolve() if directory else None
        self._progress = progress or (lambda sentence: None)
        self._credentials = credentials
        self._options = options
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._server: MlflowServer | None = None
        self._endpoints: Endpoints | None = None
        # Another thread may stop the gateway while it starts.
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def tracking_uri(self) -> str:
        """MLflow's URL: the tracking URI, and the UI."""
        return self._running().url

    @property
    def gateway_url(self) -> str:
        """The gateway's URL, the prefix of all its routes."""
        return f"{self.tracking_uri}/gateway"

    @property
    def openai_base_url(self) -> str:
        """Base URL for an OpenAI client; a model is an endpoint's name."""
        return f"{self.gateway_url}/openai/v1"

    @property
    def log_path(self) -> Path:
        """The file with the server's output."""
        return self._running().log_path

    @property
    def pid(self) -> int | None:
        """Process id, and process group id, of the server; None while it is stopped."""
        return self._running().pid

    def start(self) -> DemoGateway:
        """Start the gateway; returns when all endpoints are created and warm."""
        try:
            with self._lock:
                if self._stopped:
                    raise StartError("This gateway has been stopped; make a new one.")
                if self._server is not None:
                    return self
                atexit.register(self.stop)
                self._server = self._prepare()
            self.start_server()
            self._create_endpoints()
            self._warm_up()
        except BaseException:
            self.stop()
            raise
        return self

    def _prepare(self) -> MlflowServer:
        directory = self._directory
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="agent-gateway-", ignore_cleanup_errors=True)
            directory = Path(self._temporary.name)
        directory.mkdir(parents=True, exist_ok=True)
        self.provider.start()
        return MlflowServer(
            directory,
            self._backend_store_uri or f"sqlite:///{directory / 'mlflow.db'}",
            app_name=self._app_name,
            port=self._port,
            env=self._env,
            options=self._options,
        )

    def stop(self) -> None:
        """Stop all processes and delete the temporary directory."""
        atexit.unregister(self.stop)
        with self._lock:
            self._stopped = True
            if self._server is not None:
                self._server.close()
            self.provider.stop()
            if self._temporary is not None:
                self._temporary.cleanup()
            self._server = self._endpoints = self._temporary = None

    def start_server(self) -> None:
        """Restart the MLflow server after `stop_server`, with the same port and store."""
        self._progress("Starting the MLflow server with its database ...")
        self._running().start()

    def stop_server(self) -> None:
        """Stop only the MLflow server, to simulate an outage; the model provider keeps running."""
        self._running().stop()

    def create_endpoint(
        self, name: str, models: Sequence[str], provider: str = "openai", usage_tracking: bool = True
    ) -> str:
        """Create an endpoint; the first model is the primary one, the others are fallbacks, in order.

        Args:
            name: Name of the endpoint.
            models: Model names; see `agent_gateway_client.demo.behaviour` for their meaning.
            provider: MLflow's name of the provider.
            usage_tracking: Whether MLflow traces the calls.

        Returns:
            The endpoint's id.
        """
        return self._endpoints_of_server().create(name, models, provider, usage_tracking)

    def __enter__(self) -> DemoGateway:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> MlflowServer:
        if self._server is None:
            raise StartError(_NOT_RUNNING)
        return self._server

    def _endpoints_of_server(self) -> Endpoints:
        if self._endpoints is None:
            raise StartError(_NOT_RUNNING)
        return self._endpoints

    def _create_endpoints(self) -> None:
        self._progress(f"Creating {len(ENDPOINTS)} endpoints through MLflow's API ...")
        endpoints = Endpoints(self.tracking_uri, self.provider.url, self._credentials)
        endpoints.refresh(sorted({spec.provider for spec in ENDPOINTS.values()}))
        present = endpoints.names()
        for name, spec in ENDPOINTS.items():
            if name not in present:
                endpoints.create(name, spec.models, spec.provider, spec.usage_tracking)
        self._endpoints = endpoints

    def _warm_up(self) -> None:
        self._progress("Warming up: the server's imports at the first call take up to 30 s ...")
        began = time.monotonic()
        endpoint = "warm-up"
        endpoint_id = self.create_endpoint(endpoint, ["gpt-4o-mini"])
        try:
            warm_up(f"{self.openai_base_url}/chat/completions", endpoint, self._credentials)
        except StartError as error:
            raise StartError(f"{error} Its last lines:\n{self._running().last_lines()}") from error
        self._endpoints_of_server().delete(endpoint_id)
        self.provider.clear()
        seconds = time.monotonic() - began
        self._progress(f"The gateway is ready at {self.tracking_uri} (warm after {seconds:.0f} s).")
