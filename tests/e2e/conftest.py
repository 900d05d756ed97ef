"""One real gateway for all end-to-end tests, and clients that trace into it."""

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import mlflow
import mlflow.openai
import pytest

from agent_gateway_client.demo._port import Reservation
from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import USER, Database, httpx_client, tracing_into
from tests.support.fastapi_gateway import fastapi_gateway
from tests.support.litellm_proxy import LiteLLMProxy, configuration
from tests.support.model_provider import EveryApi
from tests.support.relay import OtelProxy, otel_proxy


@pytest.fixture(scope="session")
def upstream_port() -> Iterator[int]:
    """The port at which the gateway has another gateway as an upstream."""
    reserved = Reservation()
    yield reserved.port
    reserved.release()


@pytest.fixture(scope="session")
def engine_port() -> Iterator[int]:
    """The port at which both gateways have a model server as an upstream that continues traces."""
    reserved = Reservation()
    yield reserved.port
    reserved.release()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream_port: int, engine_port: int) -> Iterator[DemoGateway]:
    """A gateway with the companion and MLflow's default configuration. Two of its upstreams continue traces."""
    environment = {"AGENT_GATEWAY_URLS": f"http://127.0.0.1:{upstream_port},http://127.0.0.1:{engine_port}"}
    directory = tmp_path_factory.mktemp("gateway")
    with DemoGateway(directory=directory, env=environment, provider=EveryApi()) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoGateway]:
    """The same gateway without the companion."""
    with DemoGateway(None, directory=tmp_path_factory.mktemp("plain")) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def database(gateway: DemoGateway) -> Database:
    """The gateway's database."""
    return Database(gateway.log_path.parent / "mlflow.db")


@pytest.fixture(scope="session")
def litellm_proxy(
    gateway: DemoGateway, upstream_port: int, engine_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiteLLMProxy]:
    """A LiteLLM Proxy at the gateway's upstream port, in front of the same provider and of the gateway.

    Its mirrors go to the gateway's MLflow.
    """
    engine_url = f"http://127.0.0.1:{engine_port}"
    environment = {
        "MLFLOW_TRACKING_URI": gateway.tracking_uri,
        "AGENT_GATEWAY_URLS": f"{gateway.gateway_url},{engine_url}",
        "AGENT_GATEWAY_MAY_JOIN": "tests.support.tenants:may_join",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
    }
    config = configuration(gateway.provider.url, gateway_url=gateway.openai_base_url, engine_url=engine_url)
    with LiteLLMProxy(tmp_path_factory.mktemp("litellm"), config, upstream_port, **environment) as proxy:
        # The first stream of a process makes LiteLLM import a lot; chunks that arrive meanwhile would be merged.
        with proxy.column.openai_client() as client:
            list(client.chat.completions.create(model="chat", messages=[USER], stream=True))  # type: ignore[list-item]
        yield proxy


@pytest.fixture(scope="session")
def litellm_otel(
    gateway: DemoGateway, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], OtelProxy]]:
    """LiteLLM Proxies whose own callback sends to a relay, each started when its version is first needed."""
    with ExitStack() as running:

        @functools.cache
        def start(version: str) -> OtelProxy:
            return running.enter_context(otel_proxy(tmp_path_factory.mktemp("litellm-otel"), gateway, version))

        yield start


@pytest.fixture(scope="session")
def fastapi_url(gateway: DemoGateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The FastAPI gateway of integrations/ in front of the gateway's provider; its mirrors go to the same MLflow."""
    provider = f"{gateway.provider.url}/v1"
    directory = tmp_path_factory.mktemp("fastapi-gateway")
    with fastapi_gateway(directory, MLFLOW_TRACKING_URI=gateway.tracking_uri, PROVIDER_URL=provider) as url:
        yield url


@pytest.fixture(scope="module", autouse=True)
def quick_and_quiet_client() -> Iterator[None]:
    """Shorten this process's span batches, and silence its log about missing traces. The servers are unchanged."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ASYNC_TRACE_LOGGING_MAX_INTERVAL_MILLIS", "200")
        mlflow.tracing.reset()
        yield
    mlflow.set_tracking_uri(None)
    # mlflow.set_experiment() sets it, for the programs that later tests start.
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    mlflow.tracing.reset()
    logger.setLevel(level)


@pytest.fixture(scope="module")
def tracing(gateway: DemoGateway) -> Iterator[str]:
    """Trace into the agents' own experiment in the gateway's MLflow; yields its id."""
    with tracing_into(gateway) as experiment_id:
        yield experiment_id


@pytest.fixture(scope="module")
def http(gateway: DemoGateway, tracing: str) -> Iterator[httpx.Client]:
    """An httpx client for all of the gateway's routes."""
    with httpx_client(gateway) as client:
        yield client


@pytest.fixture
def autolog() -> Iterator[None]:
    """Trace OpenAI's SDK with mlflow.openai.autolog()."""
    mlflow.openai.autolog()
    yield
    mlflow.openai.autolog(disable=True)
