"""A gateway behind a gateway: MLflow's AI Gateway in front of a LiteLLM Proxy, or the other way round."""

from typing import Any, NamedTuple

import httpx
import mlflow
import pytest
from mlflow.entities import (
    FallbackConfig,
    FallbackStrategy,
    GatewayEndpointModelConfig,
    GatewayModelLinkageType,
    Span,
)
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import MlflowHostCreds

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import CHAT, USER, assert_linked, mirrored, mirrors_in, tree
from tests.support.litellm_proxy import MASTER_KEY, LiteLLMProxy

LITELLM, PROVIDER, LITELLM_UNNAMED = "litellm", "provider", "litellm by another name"

ENDPOINTS: dict[str, list[tuple[str, str]]] = {
    "chain": [(LITELLM, "chat")],
    "chain-untracked": [(LITELLM, "chat")],
    "chain-fallback": [(LITELLM, "failing"), (LITELLM, "fallback")],
    "chain-mixed": [(PROVIDER, "gpt-4o-fail-503"), (LITELLM, "chat")],
    "unnamed": [(LITELLM_UNNAMED, "chat")],
}
"""The models behind the first gateway's endpoints, in the order of the attempts."""


@pytest.fixture(scope="module")
def chain(gateway: DemoGateway, litellm_proxy: LiteLLMProxy) -> None:
    """Make the endpoints."""
    store = RestStore(lambda: MlflowHostCreds(gateway.tracking_uri))
    urls = {
        LITELLM: litellm_proxy.url,
        LITELLM_UNNAMED: litellm_proxy.url.replace("127.0.0.1", "localhost"),
        PROVIDER: gateway.provider.url,
    }
    secrets = {
        name: store.create_gateway_secret(
            secret_name=f"chain: {name}",
            secret_value={"api_key": MASTER_KEY},
            provider="openai",
            auth_config={"api_base": f"{url}/v1"},
        ).secret_id
        for name, url in urls.items()
    }
    for name, models in ENDPOINTS.items():
        configs = []
        for order, (upstream, model) in enumerate(models):
            definition = store.create_gateway_model_definition(
                f"{name}/{order}", secret_id=secrets[upstream], provider="openai", model_name=model
            )
            kind = GatewayModelLinkageType.FALLBACK if order else GatewayModelLinkageType.PRIMARY
            fallback_order = order - 1 if order else None
            configs.append(
                GatewayEndpointModelConfig(definition.model_definition_id, kind, fallback_order=fallback_order)
            )
        fallback = FallbackConfig(FallbackStrategy.SEQUENTIAL, max_attempts=1) if len(models) > 1 else None
        store.create_gateway_endpoint(name, configs, fallback_config=fallback, usage_tracking="untracked" not in name)


CHAT_BY_LITELLM = {"provider/openai/chat": {"gateway/chat": {"provider/openai/gpt-4o-mini": {}}}}
CHAIN = {"gateway/chain": CHAT_BY_LITELLM}
FALLBACK_IN_BOTH = {
    "gateway/chain-fallback": {
        "provider/openai/failing 500": {"gateway/failing 500": {"provider/openai/gpt-4o-mini-fail-500 500": {}}},
        "provider/openai/fallback": {
            "gateway/fallback": {"provider/openai/gpt-4o-fail-503 503": {}, "provider/openai/gpt-4o-mini": {}}
        },
    }
}
PROVIDER_FIRST = {"gateway/chain-mixed": {"provider/openai/gpt-4o-fail-503 503": {}, **CHAT_BY_LITELLM}}


class Chain(NamedTuple):
    """A request to the first gateway, and the mirrors below the caller's span."""

    path: str
    body: dict[str, Any]
    mirrors: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path} {self.body['model']}{' streamed' if 'stream' in self.body else ''}"


UNIFIED, OPENAI = "/mlflow/v1/chat/completions", "/openai/v1/chat/completions"
CHAINS = [
    Chain(UNIFIED, {"model": "chain", **CHAT}, CHAIN),
    Chain(UNIFIED, {"model": "chain", "stream": True, **CHAT}, CHAIN),
    Chain(OPENAI, {"model": "chain", **CHAT}, CHAIN),
    Chain(OPENAI, {"model": "chain", "stream": True, **CHAT}, CHAIN),
    Chain("/proxy/chain/v1/chat/completions", {"model": "chat", **CHAT}, CHAIN),
    Chain("/proxy/chain/v1/chat/completions", {"model": "chat", "stream": True, **CHAT}, CHAIN),
    Chain(OPENAI, {"model": "chain-untracked", **CHAT}, {"gateway/chain-untracked": CHAT_BY_LITELLM}),
    Chain(UNIFIED, {"model": "chain-fallback", **CHAT}, FALLBACK_IN_BOTH),
    Chain(UNIFIED, {"model": "chain-fallback", "stream": True, **CHAT}, FALLBACK_IN_BOTH),
    Chain(OPENAI, {"model": "chain-fallback", **CHAT}, FALLBACK_IN_BOTH),
    Chain(OPENAI, {"model": "chain-fallback", "stream": True, **CHAT}, FALLBACK_IN_BOTH),
    Chain(UNIFIED, {"model": "chain-mixed", **CHAT}, PROVIDER_FIRST),
    Chain(OPENAI, {"model": "chain-mixed", **CHAT}, PROVIDER_FIRST),
]


def count(names: dict[str, Any]) -> int:
    """Count the gateways' spans in a tree."""
    return sum(name.startswith("gateway/") + count(below) for name, below in names.items())


@pytest.fixture(scope="module")
def made(chain: None, http: httpx.Client) -> list[tuple[Span, httpx.Response]]:
    """All calls, made before waiting for the first of their traces."""
    calls = []
    for chain in CHAINS:
        with mlflow.start_span("step") as step:
            calls.append((step, http.post(chain.path, json=chain.body)))
    return calls


@pytest.mark.parametrize("number", range(len(CHAINS)), ids=lambda number: str(CHAINS[number]))
def test_three_levels_in_one_trace(number: int, made: list[tuple[Span, httpx.Response]]):
    """The second gateway's mirror is below the first one's attempt that asked it, and has its own attempts below."""
    chain, (step, answer) = CHAINS[number], made[number]
    assert answer.status_code == 200, answer.text
    trace = mirrored(step, count(chain.mirrors))
    assert tree(trace, step) == chain.mirrors
    first = mirrors_in(trace)[0]
    if "untracked" not in first.name:
        assert_linked(first)


BY_MLFLOW = {"gateway/chat": {"provider/openai/gpt-4o-mini": {}}}
FAILED_BY_MLFLOW = {"gateway/failing 500": {"provider/openai/gpt-4o-mini-fail-500 500": {}}}


@pytest.mark.parametrize(
    ("stream", "error"),
    # MLflow starts a stream before it asks the provider, and LiteLLM has its own name for one that breaks off.
    [(False, "500"), (True, "MidStreamFallbackError")],
    ids=["plain", "streamed"],
)
def test_the_other_way_round(stream: bool, error: str, litellm_proxy: LiteLLMProxy, tracing: str):
    """A LiteLLM Proxy in front of MLflow's AI Gateway: the same three levels, each attempt with its mirror below."""
    attempts = {f"provider/openai/failing {error}": FAILED_BY_MLFLOW, "provider/openai/chat": BY_MLFLOW}
    with mlflow.start_span("step") as step, litellm_proxy.column.openai_client() as client:
        answer: Any = client.chat.completions.create(model="mlflow-fallback", messages=[USER], stream=stream)
        for _ in answer if stream else ():
            pass
    trace = mirrored(step, 3)
    assert tree(trace, step) == {"gateway/mlflow-fallback": attempts}


def test_tokens_are_counted_once(made: list[tuple[Span, httpx.Response]]):
    """Tokens that both gateways report are one call's tokens."""
    step, answer = made[0]
    reported = answer.json()["usage"]
    trace = mirrored(step, 2)
    attempts = [span for span in trace.data.spans if span.name.startswith("provider/")]
    assert [span.attributes["mlflow.chat.tokenUsage"]["total_tokens"] for span in attempts] == [
        reported["total_tokens"]
    ] * 2
    assert trace.info.token_usage is not None
    assert trace.info.token_usage["total_tokens"] == reported["total_tokens"]


def test_nobody_else_is_told(gateway: DemoGateway, chain: None, http: httpx.Client):
    """A provider behind either gateway gets no trace context, and neither does a gateway that is not configured."""
    gateway.provider.clear()
    with mlflow.start_span("step") as step:
        for model in ("chain", "chain-mixed", "unnamed"):
            http.post(OPENAI, json={"model": model, **CHAT})
    assert len(gateway.provider.requests) == 4
    for request in gateway.provider.requests:
        for name in ("traceparent", "tracestate", "baggage"):
            assert request.header(name) == []
    trace = mirrored(step, 5)
    (unnamed,) = [span for span in mirrors_in(trace) if span.name == "gateway/unnamed"]
    assert tree(trace, unnamed) == {"provider/openai/chat": {}}
