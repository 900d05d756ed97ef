"""The same scenarios through every gateway. The made-up one is there to show what it takes to add another."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer

import pytest
from e2e.agent_calls import make_calls
from e2e.flask_gateway import flask_server
from e2e.gateways import MODELS, Column, exporter_to, serving
from e2e.litellm_proxy import LiteLLMProxy
from e2e.made_up_gateway import MadeUpGateway
from e2e.scenarios import SCENARIOS, Run
from e2e_support import Database

from agent_gateway_client.demo.gateway import ENDPOINTS, DemoGateway


@pytest.fixture(scope="module")
def mlflow_ai_gateway(gateway: DemoGateway) -> Column:
    for name in MODELS.keys() - ENDPOINTS.keys():
        gateway.create_endpoint(name, MODELS[name])
    return Column(gateway.openai_base_url, has_own_traces=True)


@pytest.fixture(scope="module")
def asgi_middleware(fastapi_url: str) -> Column:
    return Column(f"{fastapi_url}/v1")


@pytest.fixture(scope="module")
def litellm(litellm_proxy: LiteLLMProxy) -> Column:
    return litellm_proxy.column


@pytest.fixture(scope="module")
def flask_in_threads(gateway: DemoGateway) -> Iterator[Column]:
    with exporter_to(gateway.tracking_uri) as exporter, serving(flask_server(gateway.provider.url, exporter)) as url:
        yield Column(f"{url}/v1")


@pytest.fixture(scope="module")
def made_up(gateway: DemoGateway) -> Iterator[Column]:
    with exporter_to(gateway.tracking_uri) as exporter:
        handler = type("Handler", (MadeUpGateway,), {"provider_url": gateway.provider.url, "exporter": exporter})
        server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 128})
        with serving(server(("127.0.0.1", 0), handler)) as url:
            yield Column(f"{url}/v1")


COLUMNS = {
    "MLflow AI Gateway": "mlflow_ai_gateway",
    "ASGI (FastAPI)": "asgi_middleware",
    "LiteLLM Proxy": "litellm",
    "Flask in threads": "flask_in_threads",
    "a made-up one": "made_up",
}
"""What the columns are called, and the fixtures that start the gateways."""

Table = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Collects what became of each cell, and prints it all in the end."""
    results: Table = {}
    yield results
    lines = ["", f"{'scenario':28}" + "".join(f"{name:>20}" for name in COLUMNS)]
    for scenario in SCENARIOS:
        cells = [results.get((scenario.__name__, name), "not run") for name in COLUMNS]
        lines.append(f"{scenario.__name__:28}" + "".join(f"{cell:>20}" for cell in cells))
    counts = Counter(results.values())
    lines.append(f"{len(results)} cells: " + ", ".join(f"{count} {result}" for result, count in sorted(counts.items())))
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


@pytest.fixture(scope="module", params=COLUMNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(name: str, request: pytest.FixtureRequest, gateway: DemoGateway, database: Database, tracing: str) -> Run:
    """The gateway of a column, and a call of each mode through it."""
    column = request.getfixturevalue(COLUMNS[name])
    return Run(column, make_calls(column), database, gateway.provider)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_gateway(scenario: Callable[[Run], None], name: str, run: Run, table: Table):
    """What the scenario's function says holds for the gateway."""
    table[scenario.__name__, name] = "FAILED"
    scenario(run)
    table[scenario.__name__, name] = "ok"


def test_adding_a_gateway_takes_one_short_class():
    """The made-up gateway is one class of under 40 lines."""
    assert len(inspect.getsource(MadeUpGateway).splitlines()) < 40
