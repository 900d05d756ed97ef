"""No payload leaves a real MLflow AI Gateway or LiteLLM Proxy for the trace store, and no span is lost at the end.

The gateways send over OTLP, and the exact bytes are searched, with 10,000 examples each if NIGHTLY is set.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from agent_gateway_client.demo._endpoints import Endpoints
from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.canaries import (
    CANARY,
    EXAMPLES,
    FIELDS,
    HEADERS,
    AllFound,
    Answer,
    Question,
    answers,
    body_of,
    found_leaks,
    headers_of,
    questions,
    search,
    sentences,
    texts,
    words,
)
from tests.support.e2e import CHAT, DEADLINE_S, wait_for
from tests.support.hostile_provider import OK, HostileProvider
from tests.support.litellm_proxy import MASTER_KEY, LiteLLMProxy, configuration
from tests.support.nightly import amount
from tests.support.otlp_receiver import Receiver
from tests.support.server import TRACEPARENT

SIGTERM_CALLS = amount(200, 500)
ONCE = settings(EXAMPLES, phases=[Phase.generate])
"""Failures cannot be reproduced by repeating a request: its mirror arrives after the example."""


@pytest.fixture(scope="module")
def provider() -> Iterator[HostileProvider]:
    with HostileProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


ROOT = Path(__file__).parents[2]


def environment(receiver: Receiver, leaking: bool = False) -> dict[str, str]:
    """Return the variables of a gateway that sends to a receiver, with or without a leak."""
    variables = {"AGENT_GATEWAY_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    if leaking:
        variables["AGENT_GATEWAY_MAY_JOIN"] = "tests.support.leaking:may_join"
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return variables


def assert_leaks_are_found(
    receiver: Receiver, client: httpx.Client, asked: st.SearchStrategy[Question], missing: set[str]
) -> None:
    """Send the same requests to a gateway with leaks, and find each leak."""

    @settings(ONCE, max_examples=1_000)
    @given(asked)
    def check(question: Question) -> None:
        if not missing:
            raise AllFound
        send(client, "/v1/chat/completions", question)
        missing.difference_update(found_leaks(receiver))

    with suppress(AllFound):
        check()

    def is_found(header: str) -> bool:
        send(client, "/v1/chat/completions", Question("", [(header, CANARY)], {"model": "chat", **CHAT}))
        missing.difference_update(found_leaks(receiver))
        return header not in missing

    # The examples are random, and each has few headers.
    for header in sorted(missing & set(HEADERS)):
        wait_for(f"the leak of {header}", partial(is_found, header))
    assert missing == set()


@pytest.fixture(scope="module")
def mlflow_gateway(
    receiver: Receiver, provider: HostileProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DemoGateway]:
    """MLflow's gateway, also with endpoints in front of the hostile provider."""
    directory = tmp_path_factory.mktemp("canaries")
    with DemoGateway(directory=directory, env=environment(receiver)) as gateway:
        endpoints = Endpoints(gateway.tracking_uri, provider.url)
        # The secret's name distinguishes the providers.
        endpoints.refresh(["openai", "anthropic"])
        endpoints.create("hostile", ["gpt-4o-mini", "gpt-4o"], "openai", True)
        endpoints.create("hostile-claude", ["claude-3-5-haiku-20241022"], "anthropic", True)
        endpoints.create("hostile-untracked", ["gpt-4o-mini"], "openai", False)
        yield gateway


MLFLOW_ENDPOINTS = ["hostile", "hostile-claude", "hostile-untracked"]
MLFLOW_PATHS = [
    "/mlflow/v1/chat/completions",
    "/hostile/mlflow/invocations",
    "/hostile-untracked/mlflow/invocations",
    "/openai/v1/chat/completions",
    "/openai/v1/embeddings",
    "/openai/v1/responses",
    "/anthropic/v1/messages",
    "/proxy/hostile/v1/chat/completions",
    "/gemini/v1beta/models/hostile:generateContent",
]
MLFLOW_NAMED_PATHS = [
    "/{}/mlflow/invocations",
    "/proxy/{}/v1/chat/completions",
    "/proxy/hostile/{}",
    "/gemini/v1beta/models/{}:generateContent",
    "/{}",
]
"""Paths that contain a name chosen by the caller."""
MLFLOW_QUESTIONS = questions(MLFLOW_ENDPOINTS, texts)
"""For MLflow, only an endpoint's name is a name."""


def send(client: httpx.Client, path: str, question: Question) -> None:
    """Send a request; its response is ignored."""
    headers = [*headers_of(question), ("content-type", "application/json")]
    try:
        client.post(path, params={"key": question.query}, headers=headers, content=body_of(question))
    except httpx.ConnectError:
        raise
    except httpx.HTTPError:
        # The provider's malformed response may reach the client. The next request shows whether the gateway is there.
        pass


def test_mlflow(mlflow_gateway: DemoGateway, provider: HostileProvider, receiver: Receiver):
    """No text from requests to MLflow's gateway or from its provider's answers is in the mirrors."""
    mirrors = sent = 0
    client = httpx.Client(base_url=mlflow_gateway.gateway_url, timeout=DEADLINE_S)
    paths = st.sampled_from(MLFLOW_PATHS) | st.builds(
        str.format, st.sampled_from(MLFLOW_NAMED_PATHS), words.map(lambda word: word.strip("."))
    )

    @ONCE
    @given(MLFLOW_QUESTIONS, answers, paths)
    def check(question: Question, answer: Answer, path: str) -> None:
        nonlocal mirrors, sent
        provider.answer = answer
        send(client, path, question)
        sent += 1
        mirrors += search(receiver)

    with client:
        check()

    def all_came() -> bool:
        nonlocal mirrors
        mirrors += search(receiver)
        return mirrors >= sent / 5

    # Not all of them: MLflow rejects requests with a made-up Host header, and names in paths are mostly unknown.
    wait_for("the mirrors", all_came)


def test_a_stop_while_spans_wait(mlflow_gateway: DemoGateway, provider: HostileProvider, receiver: Receiver):
    """SIGTERM while many mirrors (500 with NIGHTLY) wait for a failing store: all arrive, once."""
    provider.answer = OK
    receiver.troubles = [500] * 1_000_000
    body = {"model": "chat", **CHAT}
    parents = [f"{number:016x}" for number in range(1, SIGTERM_CALLS + 1)]

    def call(span_id: str) -> int:
        traceparent = f"{TRACEPARENT[:36]}{span_id}-01"
        url = f"{mlflow_gateway.openai_base_url}/chat/completions"
        return httpx.post(url, json=body, headers={"traceparent": traceparent}, timeout=DEADLINE_S).status_code

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(call, parents)) == {200}
        known = {span.parent_span_id.hex() for span in receiver.spans}
        assert not known & set(parents), "all of them wait"
        stopped = threads.submit(mlflow_gateway.stop_server)
        # The server has begun to stop once it refuses requests.
        wait_for("the stop", lambda: not _answers(mlflow_gateway.tracking_uri))
        receiver.troubles.clear()
        stopped.result()
    found = [span.parent_span_id.hex() for span in receiver.spans if span.name == "gateway/chat"]
    assert sorted(found) == parents


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


FORGED = f"00-{'f0' * 16}-{'f0' * 8}-01"
LAST = f"00-{'1a' * 16}-{'1a' * 8}-01"
LITELLM_MODELS = ["chat", "fallback", "claude", "embeddings"]
wildcards = sentences.filter(lambda text: "," not in text).map(lambda text: f"any/{text}")
"""Models that match a wildcard: callers choose their names. LiteLLM splits a text at commas into several models."""

LITELLM_PATHS = [
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/completions",
    "/v1/messages",
    "/v1/rerank",
    "/v1/images/generations",
    "/v1/audio/speech",
    "/v1/moderations",
    "/v1/batches",
    "/v1beta/models/chat:generateContent",
]
LITELLM_NAMED_PATHS = [
    "/v1beta/models/{}:generateContent",
    "/openai/deployments/{}/chat/completions",
    "/engines/{}/chat/completions",
    "/{}/v1/chat/completions",
]
RAW_PATHS = ["/raw/chat/completions", "/raw/embeddings", "/raw/responses"]
"""On these paths the caller chooses the model's name, which is mirrored once the provider has served it."""


def litellm_questions(models: st.SearchStrategy[str]) -> st.SearchStrategy[Question]:
    """Return requests to a LiteLLM Proxy, without headers that it would use as keys."""
    return questions(LITELLM_MODELS, models | wildcards).map(
        lambda question: question._replace(
            headers=[line for line in question.headers if line[0] not in ("x-api-key", "cookie")]
        )
    )


LITELLM_QUESTIONS = litellm_questions(texts)
"""For LiteLLM's router, only the name of a configured model is a name."""


def test_litellm(provider: HostileProvider, tmp_path: Path):
    """No text from requests to a LiteLLM Proxy or from its provider's answers is in the mirrors."""
    config = configuration(provider.url)
    for model in config["model_list"]:
        # LiteLLM's own client would wait and retry.
        model["litellm_params"]["max_retries"] = 0
    mirrors = 0
    paths = st.sampled_from(LITELLM_PATHS) | st.builds(
        str.format, st.sampled_from(LITELLM_NAMED_PATHS), words.map(lambda word: word.strip("."))
    )
    asked = st.tuples(LITELLM_QUESTIONS, paths)
    asked |= st.tuples(litellm_questions(sentences), st.sampled_from(RAW_PATHS))
    with Receiver() as receiver:
        with LiteLLMProxy(tmp_path, config, **environment(receiver)) as proxy:
            authorization = {"authorization": f"Bearer {MASTER_KEY}"}
            client = httpx.Client(base_url=proxy.url, headers=authorization, timeout=DEADLINE_S)

            @ONCE
            @given(asked, answers)
            def check(asked: tuple[Question, str], answer: Answer) -> None:
                nonlocal mirrors
                provider.answer = answer
                question, path = asked
                send(client, path, question)
                mirrors += search(receiver)

            with client:
                check()
                provider.answer = OK
                for headers in ({}, {"authorization": "Bearer sk-wrong"}):
                    imitate(proxy.url, headers)
                client.post("/v1/chat/completions", json={"model": "chat", **CHAT}, headers={"traceparent": LAST})
        # Mirrors are sent in order: those of the imitations would come before the last one.
        arrived = {span.trace_id.hex() for span in receiver.spans}
        assert LAST[3:35] in arrived
        assert FORGED[3:35] not in arrived
        mirrors += search(receiver)
    assert mirrors > EXAMPLES.max_examples / 4


def imitate(url: str, headers: dict[str, str]) -> None:
    """Send a body that imitates the proxy's own metadata of a request, without a valid key."""
    notes = {"url": f"{url}/v1/chat/completions", "method": "POST", "headers": {"traceparent": FORGED}}
    body = {"model": "chat", "proxy_server_request": notes, "litellm_params": {"proxy_server_request": notes}, **CHAT}
    assert not httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=DEADLINE_S).is_success


def test_leaks_of_mlflows_gateway_are_found(tmp_path: Path):
    """The same search finds the leaks of an MLflow AI Gateway."""
    with Receiver() as receiver, DemoGateway(directory=tmp_path, env=environment(receiver, True)) as gateway:
        receiver.requests.clear()
        with httpx.Client(base_url=f"{gateway.gateway_url}/openai", timeout=DEADLINE_S) as client:
            # The companion removes the trace context from MLflow's requests.
            leaks = {*FIELDS, *HEADERS} - {"tracestate", "baggage"}
            assert_leaks_are_found(receiver, client, MLFLOW_QUESTIONS, leaks)


def test_leaks_of_a_litellm_proxy_are_found(provider: HostileProvider, tmp_path: Path):
    """The same search finds the leaks of a LiteLLM Proxy."""
    config, headers = configuration(provider.url), {"authorization": f"Bearer {MASTER_KEY}"}
    provider.answer = OK
    with (
        Receiver() as receiver,
        LiteLLMProxy(tmp_path, config, **environment(receiver, True)) as proxy,
        httpx.Client(base_url=proxy.url, headers=headers, timeout=DEADLINE_S) as client,
    ):
        assert_leaks_are_found(receiver, client, LITELLM_QUESTIONS, {*FIELDS, *HEADERS})
