"""One trace from the agent to the model server, which is behind a gateway and sends its spans to the relay."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.entities import (
    GatewayEndpointModelConfig,
    GatewayModelLinkageType,
    Span,
    Trace,
)
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import MlflowHostCreds

from agent_gateway_client.cli.app import app
from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import USER, Database, children_of, mirrored, read_trace, tree, wait_for
from tests.support.engine import DECODE_S, PREFILL_S, QUEUE_S, Engine
from tests.support.gateways import Column
from tests.support.litellm_proxy import ENGINE_MODEL, LiteLLMProxy
from tests.support.relay import relay
from tests.support.served import Served

AT_ONCE = 12
CANARY = "c4n4ry7f3a"


@pytest.fixture(scope="module")
def engine(gateway: DemoGateway, engine_port: int) -> Iterator[str]:
    """The model server, at an address that both gateways have as an upstream gateway; its spans go to a relay."""
    with relay("--tracking-uri", gateway.tracking_uri) as receiver:
        app = Engine(gateway.provider.url, receiver.url, ENGINE_MODEL).app
        with Served(app, port=engine_port) as url:
            yield url


class Behind(NamedTuple):
    """A gateway in front of the model server, and its name for that provider."""

    column: Column
    provider: str


def mlflow_gateway(request: pytest.FixtureRequest) -> Behind:
    gateway: DemoGateway = request.getfixturevalue("gateway")
    store = RestStore(lambda: MlflowHostCreds(gateway.tracking_uri))
    secret = store.create_gateway_secret(
        secret_name="engine",
        secret_value={"api_key": "none"},
        provider="openai",
        auth_config={"api_base": f"{request.getfixturevalue('engine')}/v1"},
    )
    definition = store.create_gateway_model_definition(
        "engine", secret_id=secret.secret_id, provider="openai", model_name=ENGINE_MODEL
    )
    model = GatewayEndpointModelConfig(definition.model_definition_id, GatewayModelLinkageType.PRIMARY)
    store.create_gateway_endpoint(ENGINE_MODEL, [model])
    return Behind(Column(gateway.openai_base_url), "openai")


def litellm_proxy(request: pytest.FixtureRequest) -> Behind:
    proxy: LiteLLMProxy = request.getfixturevalue("litellm_proxy")
    return Behind(proxy.column, "hosted_vllm")


GATEWAYS = {"MLflow AI Gateway": mlflow_gateway, "LiteLLM Proxy": litellm_proxy}


@pytest.fixture(scope="module", params=GATEWAYS)
def behind(request: pytest.FixtureRequest, engine: str, tracing: str) -> Behind:
    """Each gateway, with its companion."""
    return GATEWAYS[request.param](request)


def engines_in(trace: Trace) -> list[Span]:
    return [span for span in trace.data.spans if span.name.startswith("engine")]


def complete(step: Span, count: int = 1) -> Trace:
    """Return a trace once it has this many mirrors and, from the relay, as many of the model server's spans."""
    mirrored(step, count)

    def with_engines() -> Trace | None:
        trace = read_trace(step.trace_id)
        return trace if trace is not None and len(engines_in(trace)) >= count else None

    return wait_for(f"{count} of the model server's spans", with_engines)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_one_trace_from_agent_to_engine(behind: Behind, stream: bool, database: Database):
    """The model server's span is below the attempt that asked it, within its time, without tokens or payload."""
    message: Any = {"role": "user", "content": f"say {CANARY}"}
    with behind.column.openai_client() as client, mlflow.start_span("step") as step:
        answer: Any = client.chat.completions.create(model=ENGINE_MODEL, messages=[message], stream=stream)
        for _ in answer if stream else ():
            pass
    trace = complete(step)
    below = {f"provider/{behind.provider}/{ENGINE_MODEL}": {f"engine/{ENGINE_MODEL}": {}}}
    assert tree(trace, step) == {f"gateway/{ENGINE_MODEL}": below}
    (engine,) = engines_in(trace)
    assert {name: value for name, value in engine.attributes.items() if name.startswith("gen_ai.")} == {
        "gen_ai.latency.time_in_queue": QUEUE_S,
        "gen_ai.latency.time_in_model_prefill": PREFILL_S,
        "gen_ai.latency.time_in_model_decode": DECODE_S,
        "gen_ai.latency.time_to_first_token": QUEUE_S + PREFILL_S,
    }
    assert "mlflow.chat.tokenUsage" not in engine.attributes
    if not stream:
        assert trace.info.token_usage is not None
        assert trace.info.token_usage["total_tokens"] == answer.usage.total_tokens
    assert [row for row in database.rows_of(step.trace_id) if CANARY in json.dumps(row)] == []


def test_calls_at_once(behind: Behind):
    """Each of the model server's spans is below the attempt of its own call."""

    async def ask(client: Any, number: int) -> Span:
        with mlflow.start_span(f"call {number}") as span:
            await client.chat.completions.create(model=ENGINE_MODEL, messages=[USER])
        return span

    async def ask_all() -> list[Span]:
        async with behind.column.async_openai_client() as client:
            with mlflow.start_span("fan out"):
                return await asyncio.gather(*(ask(client, number) for number in range(AT_ONCE)))

    steps = asyncio.run(ask_all())
    trace = complete(steps[0], AT_ONCE)
    for step in steps:
        (mirror,) = children_of(trace, step)
        (attempt,) = children_of(trace, mirror)
        (engine,) = children_of(trace, attempt)
        assert (attempt.name, engine.name) == (f"provider/{behind.provider}/{ENGINE_MODEL}", f"engine/{ENGINE_MODEL}")


def test_what_people_see(behind: Behind, gateway: DemoGateway, tmp_path: Path):
    """The command's tree and the waterfall show in words how the model server spent its time."""
    with behind.column.openai_client() as client, mlflow.start_span("agent") as agent:
        client.chat.completions.create(model=ENGINE_MODEL, messages=[USER])  # type: ignore[list-item]
    complete(agent)
    page = tmp_path / "trace.html"
    command = ["trace", agent.trace_id, "--tracking-uri", gateway.tracking_uri]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    said = "waited 1.20 s in the queue, prefill 300 ms, decode 500 ms"
    (line,) = [line for line in told.output.splitlines() if "engine/" in line]
    assert said in line
    assert CliRunner().invoke(app, [*command, "--html", str(page)]).exit_code == 0
    assert said in page.read_text(encoding="utf-8")
