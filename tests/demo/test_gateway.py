"""gateway.py: a real `mlflow server` with its AI Gateway, started, used, stopped."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import MlflowHostCreds

from agent_gateway_client.demo.gateway import ENDPOINTS, DemoGateway
from agent_gateway_client.errors import StartError
from tests.support.workers import gateway_with_workers

pytestmark = pytest.mark.e2e

QUESTION = {"role": "user", "content": "one two"}
CHAT = {"messages": [QUESTION]}


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the gateway said while it started."""
    return []


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def gateway(said: list[str], directory: Path) -> Iterator[DemoGateway]:
    with DemoGateway(progress=said.append, directory=directory) as gateway:
        yield gateway


@pytest.fixture
def http(gateway: DemoGateway) -> Iterator[httpx.Client]:
    gateway.provider.clear()
    with httpx.Client(base_url=gateway.gateway_url, timeout=60) as client:
        yield client


def endpoints_of(gateway: DemoGateway) -> dict[str, bool]:
    """Names of the endpoints MLflow has, and whether their calls are traced."""
    store = RestStore(lambda: MlflowHostCreds(gateway.tracking_uri))
    return {str(endpoint.name): endpoint.usage_tracking for endpoint in store.list_gateway_endpoints()}


def running_in(group: int) -> list[str]:
    """Processes of a process group, after some time to die; zombies are dead, and only wait for the init process."""
    deadline = time.monotonic() + 20
    while True:
        running = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, rest = path.read_text().rpartition(")")
                state, _, process_group = rest.split()[:3]
                if int(process_group) == group and state != "Z":
                    running.append(name)
        if not running or time.monotonic() > deadline:
            return running
        time.sleep(0.05)


def test_it_says_what_it_does_and_leaves_no_trace_of_its_warm_up(gateway: DemoGateway, said: list[str]):
    assert [sentence.split()[0] for sentence in said] == ["Starting", "Creating", "Warming", "The"]
    assert endpoints_of(gateway) == {name: spec.usage_tracking for name, spec in ENDPOINTS.items()}
    assert "GET /health" in gateway.log_path.read_text()


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/openai/v1/chat/completions", {"model": "chat", **CHAT}),
        ("/openai/v1/chat/completions", {"model": "slow", **CHAT}),
        ("/openai/v1/chat/completions", {"model": "untracked", **CHAT}),
        ("/openai/v1/responses", {"model": "responses", "input": "one two"}),
        ("/mlflow/v1/chat/completions", {"model": "chat", **CHAT}),
        ("/mlflow/v1/chat/completions", {"model": "claude", **CHAT}),
        ("/chat/mlflow/invocations", CHAT),
        ("/anthropic/v1/messages", {"model": "claude", "max_tokens": 9, **CHAT}),
        ("/gemini/v1beta/models/gemini:generateContent", {"contents": [{"parts": [{"text": "one two"}]}]}),
        ("/proxy/chat/v1/chat/completions", {"model": "gpt-4o-mini", **CHAT}),
    ],
)
def test_routes_answer(http: httpx.Client, route: str, body: dict[str, object]):
    response = http.post(route, json=body)
    assert response.status_code == 200, response.text
    assert "You said: one two" in response.text


@pytest.mark.parametrize(
    ("route", "model"),
    [
        ("/openai/v1/chat/completions", "long"),
        ("/mlflow/v1/chat/completions", "chat"),
        ("/anthropic/v1/messages", "claude"),
    ],
)
def test_routes_stream(http: httpx.Client, route: str, model: str):
    response = http.post(route, json={"model": model, "stream": True, **CHAT})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.count("data: ") > 4
    assert "error" not in response.text


def test_embeddings_answer(gateway: DemoGateway):
    with openai.OpenAI(base_url=gateway.openai_base_url, api_key="none") as client:
        assert len(client.embeddings.create(model="embeddings", input=["one", "two"]).data) == 2


def test_a_failing_model_fails_and_a_fallback_steps_in(gateway: DemoGateway, http: httpx.Client):
    failed = http.post("/openai/v1/chat/completions", json={"model": "failing", **CHAT})
    assert failed.status_code == 500
    gateway.provider.clear()
    answered = http.post("/openai/v1/chat/completions", json={"model": "fallback", **CHAT})
    assert answered.status_code == 200
    assert [request.body["model"] for request in gateway.provider.requests] == ["gpt-4o-fail-503", "gpt-4o-mini"]


def test_a_broken_stream_ends_with_an_error(http: httpx.Client):
    response = http.post("/openai/v1/chat/completions", json={"model": "broken", "stream": True, **CHAT})
    assert '"error"' in response.text
    assert "[DONE]" not in response.text


def test_endpoints_can_be_added(gateway: DemoGateway, http: httpx.Client):
    """Models are tried in the order given."""
    gateway.create_endpoint("mine", ["a-fail-500", "b-fail-429", "c"], usage_tracking=False)
    response = http.post("/openai/v1/chat/completions", json={"model": "mine", **CHAT})
    assert response.status_code == 200, response.text
    assert [request.body["model"] for request in gateway.provider.requests] == ["a-fail-500", "b-fail-429", "c"]
    assert endpoints_of(gateway)["mine"] is False


def test_the_server_can_be_away_and_come_back(gateway: DemoGateway, http: httpx.Client):
    """At the same address, with its endpoints; the provider goes on meanwhile."""
    address = gateway.tracking_uri
    gateway.stop_server()
    assert gateway.pid is None
    with pytest.raises(httpx.ConnectError):
        http.get("/mlflow/v1/models")
    assert httpx.get(f"{gateway.provider.url}/_requests").status_code == 200
    gateway.start_server()
    assert gateway.tracking_uri == address
    assert http.post("/openai/v1/chat/completions", json={"model": "chat", **CHAT}).status_code == 200


def test_a_port_that_is_taken_is_refused_and_left_alone(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.setblocking(False)
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"Port {port} "), DemoGateway(port=port, directory=tmp_path):
            pass
        with pytest.raises(BlockingIOError):
            taken.accept()


def test_a_server_that_ends_is_reported_with_its_last_lines(tmp_path: Path):
    gateway = DemoGateway(env={"AGENT_GATEWAY_EXPORTER": "carrier-pigeon"}, directory=tmp_path)
    with pytest.raises(StartError, match=r"(?s)ended with status .*carrier-pigeon"):
        gateway.start()
    with pytest.raises(StartError, match="not running"):
        _ = gateway.tracking_uri
    with pytest.raises(StartError, match="make a new one"):
        gateway.start()


def test_a_temporary_directory_is_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Also when the start fails."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(StartError), DemoGateway("no-such-app"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_directory_can_be_used_again_and_nothing_stays_running(gateway: DemoGateway, directory: Path):
    """The second gateway's endpoints lead to the second provider, whose port is another one. Comes last here."""
    first_pid, first_address, first_provider = gateway.pid, gateway.tracking_uri, gateway.provider.url
    assert first_pid
    gateway.create_endpoint("kept", ["gpt-4o-mini"])
    gateway.stop()
    assert running_in(first_pid) == []
    for address in (first_address, first_provider):
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)

    with gateway_with_workers(2, None, directory=directory) as second:
        pid = second.pid
        assert pid
        second.provider.clear()
        with openai.OpenAI(base_url=second.openai_base_url, api_key="none") as client:
            client.chat.completions.create(model="kept", messages=[{"role": "user", "content": "hi"}])
        assert [request.path for request in second.provider.requests] == ["/v1/chat/completions"]
    assert running_in(pid) == []
