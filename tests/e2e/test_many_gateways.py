"""Several gateways write into the traces of one MLflow on PostgreSQL, in the two ways of docs/scaling.md.

Either each gateway writes over MLflow's own protocol, or they send OTLP through a collector and two relays behind one
address, as in integrations/otel-collector.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import mlflow
import psycopg
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from agent_gateway_client import wrap_httpx
from agent_gateway_client.demo._server import MlflowServer
from agent_gateway_client.demo.provider import Provider
from tests.support.backends import Collector, FastapiGateway, Postgres, over_otlp
from tests.support.balancer import balancer
from tests.support.e2e import CHAT, DEADLINE_S, children_of, wait_for
from tests.support.relay import relay

AGENTS, CALLS = 100, 20
GATEWAYS = 2
AT_ONCE = 10
SPANS = AGENTS * (1 + 3 * CALLS)
TOKENS = 3


class Made(NamedTuple):
    """The calls and where they are stored.

    Attributes:
        callers: Trace id and span id of the span around each call, in MLflow's form.
        postgres: MLflow's database.
        experiment_id: The agents' experiment.
    """

    callers: list[tuple[str, str]]
    postgres: Postgres
    experiment_id: str

    def spans(self, names: str) -> list[tuple[str, str, str, dict[str, Any]]]:
        """Return trace id, span id, parent id and attributes of the spans with these names."""
        query = "SELECT trace_id, span_id, parent_span_id, content FROM spans WHERE name LIKE %s"
        with psycopg.connect(self.postgres.conninfo) as connection:
            rows = connection.execute(query, [names]).fetchall()
        return [(trace, span, parent, json.loads(content)["attributes"]) for trace, span, parent, content in rows]

    def count(self) -> int:
        with psycopg.connect(self.postgres.conninfo) as connection:
            row = connection.execute("SELECT count(*) FROM spans").fetchone()
        assert row is not None
        return int(row[0])


async def run_agents(urls: list[str], tracer: Any) -> list[tuple[str, str]]:
    """Make all calls, each agent's through both gateways in turn; returns the spans around them."""
    callers = []
    turn = asyncio.Semaphore(AT_ONCE)

    async def agent(client: httpx.AsyncClient) -> None:
        async with turn:
            with tracer.start_as_current_span("agent"):
                for number in range(CALLS):
                    with tracer.start_as_current_span("ask") as span:
                        url = f"{urls[number % len(urls)]}/v1/chat/completions"
                        answer = await client.post(url, json={"model": "chat", **CHAT})
                        assert answer.status_code == 200, answer.text
                    context = span.get_span_context()
                    callers.append((f"tr-{context.trace_id:032x}", f"{context.span_id:016x}"))

    # uvicorn closes a connection after 5 s without a request, when httpx may be about to use it again.
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=1)
    async with wrap_httpx(httpx.AsyncClient(timeout=DEADLINE_S, limits=limits, trust_env=False), urls) as client:
        await asyncio.gather(*(agent(client) for _ in range(AGENTS)))
    return callers


@contextmanager
def over_http(tracking_uri: str, directory: Path) -> Iterator[dict[str, str]]:
    """Let gateways write to MLflow directly."""
    yield {"AGENT_GATEWAY_EXPORTER": "mlflow", "MLFLOW_TRACKING_URI": tracking_uri}


@contextmanager
def through_relays(tracking_uri: str, directory: Path) -> Iterator[dict[str, str]]:
    """Let gateways send to a collector, which sends to two relays in turn."""
    Collector.program()
    with ExitStack() as running:
        relays = [running.enter_context(relay("--tracking-uri", tracking_uri)) for _ in range(2)]
        addresses = [relayed.url.removesuffix("/v1/traces") for relayed in relays]
        balanced = running.enter_context(balancer(addresses))
        collector = running.enter_context(Collector(directory, balanced.url))
        yield over_otlp(collector.url)
        assert min(balanced.sent[address] for address in addresses) > 0, "each relay got some of the spans"


WAYS = {"MLflow over HTTP": over_http, "collector and two relays": through_relays}


@pytest.fixture(
    scope="module", params=["MLflow over HTTP", pytest.param("collector and two relays", marks=pytest.mark.beside)]
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """2,000 calls through two gateway processes, after everything has been sent to MLflow."""
    with ExitStack() as running:
        postgres = running.enter_context(Postgres())
        server = MlflowServer(tmp_path_factory.mktemp("mlflow"), postgres.url, app_name=None, port=None, env={})
        running.callback(server.close)
        server.start()
        mlflow.set_tracking_uri(server.url)
        experiment_id = str(mlflow.create_experiment("agents"))
        way = running.enter_context(WAYS[request.param](server.url, tmp_path_factory.mktemp("way")))
        provider = running.enter_context(Provider())
        gateways = [
            running.enter_context(FastapiGateway(tmp_path_factory.mktemp("gateway"), f"{provider.url}/v1", **way))
            for _ in range(GATEWAYS)
        ]
        tracing = TracerProvider()
        # The agents trace into MLflow directly, into an experiment that no gateway knows.
        exporter = OTLPSpanExporter(f"{server.url}/v1/traces", headers={"x-mlflow-experiment-id": experiment_id})
        tracing.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=2 * AGENTS * CALLS))
        callers = asyncio.run(run_agents([gateway.url for gateway in gateways], tracing.get_tracer("agents")))
        tracing.shutdown()
        made = Made(callers, postgres, experiment_id)
        # The agents' own spans, and for each call the span around it, the mirror and its attempt.
        for tenths in range(1, 11):
            wait_for(f"{tenths} tenths of all spans", lambda least=SPANS * tenths // 10: made.count() >= least)
        yield made


def test_each_call_has_one_mirror(made: Made):
    """2,000 calls through two processes have 2,000 mirrors, each once and below its own caller's span."""
    assert len(set(made.callers)) == AGENTS * CALLS
    mirrors = made.spans("gateway/%")
    assert len({(trace, span) for trace, span, *_ in mirrors}) == len(mirrors) == AGENTS * CALLS
    assert Counter((trace, parent) for trace, _, parent, _ in mirrors) == Counter(made.callers)


def test_all_is_in_the_agents_experiment(made: Made):
    """Every trace is in the experiment in which its agent started it."""
    with psycopg.connect(made.postgres.conninfo) as connection:
        rows = connection.execute("SELECT experiment_id, count(*) FROM trace_info GROUP BY experiment_id").fetchall()
    assert rows == [(int(made.experiment_id), AGENTS)]


def test_each_mirror_has_its_attempt(made: Made):
    """The attempts are stored too, each below its own mirror, with MLflow's attributes."""
    mirrors = {(trace, span) for trace, span, *_ in made.spans("gateway/%")}
    attempts = made.spans("provider/%")
    assert {(trace, parent) for trace, _, parent, _ in attempts} == mirrors
    assert len(attempts) == AGENTS * CALLS
    for *_, attributes in attempts:
        assert attributes["mlflow.llm.provider"] == '"openai"'


def test_both_processes_have_served(made: Made):
    """Both gateways have served calls, and the mirrors identify the gateway."""
    addresses = Counter(attributes["server_url"] for *_, attributes in made.spans("gateway/%"))
    assert sorted(addresses.values()) == [AGENTS * CALLS / GATEWAYS] * GATEWAYS


def test_mlflow_shows_the_trace(made: Made):
    """MLflow's own client reads an agent's trace: nested, with each call's tokens counted once."""
    trace = mlflow.get_trace(made.callers[0][0])
    assert trace is not None
    (agent,) = [span for span in trace.data.spans if span.parent_id is None]
    asks = children_of(trace, agent)
    assert len(asks) == CALLS
    for ask in asks:
        (mirror,) = children_of(trace, ask)
        (attempt,) = children_of(trace, mirror)
        assert (mirror.name, attempt.name) == ("gateway/chat", "provider/openai/gpt-4o-mini")
    assert trace.info.token_usage is not None
    assert trace.info.token_usage["input_tokens"] == CALLS * TOKENS
