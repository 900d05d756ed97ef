"""integrations/fastapi-gateway as it is: a gateway under uvicorn that exports to a real MLflow server over HTTP."""

import contextvars
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import mlflow
import openai
import pytest
from e2e_support import (
    DEADLINE_S,
    USER,
    Database,
    assert_mirror,
    children_of,
    mirrored,
    mirrors_in,
    read_trace,
    wait_for,
)

from agent_gateway_client import wrap_httpx, wrap_openai
from agent_gateway_client.demo._port import Reservation
from agent_gateway_client.demo._server import NOT_INHERITED
from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.demo.provider import Provider

FOLDER = Path(__file__).parents[2] / "integrations" / "fastapi-gateway"
CANARY = "canary-asgi-7d1e"
START_DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def url(gateway: DemoGateway, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gateway of the folder, in a process of its own; MLflow's server is only where its mirrors go."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    env = {**inherited, "MLFLOW_TRACKING_URI": gateway.tracking_uri, "PROVIDER_URL": f"{provider.url}/v1"}
    reserved = Reservation()
    log = tmp_path_factory.mktemp("fastapi-gateway") / "log"
    command = [sys.executable, "-m", "uvicorn", "gateway:app", "--port", str(reserved.port), "--no-access-log"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=FOLDER, env=env, stdout=output, stderr=subprocess.STDOUT)
    found = f"http://127.0.0.1:{reserved.port}"
    try:
        deadline = time.monotonic() + START_DEADLINE_S
        while process.poll() is None and not answers(found) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        yield found
        process.terminate()
        assert process.wait(DEADLINE_S) in (0, -15), log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
        reserved.release()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/openapi.json", timeout=5).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def client(url: str, tracing: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S) as client:
        yield wrap_openai(client)


def test_the_folders_agent(url: str, gateway: DemoGateway):
    """The agent's trace has a mirror under each of its steps: attempts, fallback, tokens, cost of none, all once."""
    env = {**os.environ, "MLFLOW_TRACKING_URI": gateway.tracking_uri, "GATEWAY_URL": url}
    ran = subprocess.run([sys.executable, "agent.py"], cwd=FOLDER, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    trace_id = json.loads(ran.stdout.splitlines()[-1])["trace_id"]

    def complete() -> Any:
        trace = read_trace(trace_id)
        return trace if trace and len(mirrors_in(trace)) == 3 and trace.info.state != "IN_PROGRESS" else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", gateway.tracking_uri)
        mlflow.set_tracking_uri(gateway.tracking_uri)
        trace = wait_for("three mirrors", complete)
    steps = {span.name: span for span in trace.data.spans}
    expected = {
        "ask": ("gateway/chat", [("openai/gpt-4o-mini", "OK")]),
        "ask for a stream": ("gateway/fallback", [("openai/gpt-4o-fail-503", "ERROR"), ("openai/gpt-4o-mini", "OK")]),
        "embed": ("gateway/embeddings", [("openai/text-embedding-3-small", "OK")]),
    }
    total = 0
    for step, (name, attempts) in expected.items():
        (mirror,) = children_of(trace, steps[step])
        assert mirror.name == name
        assert mirror.status.status_code == "OK"
        spans = assert_mirror(trace, mirror, steps[step], attempts)
        total += spans[-1].attributes["mlflow.chat.tokenUsage"]["total_tokens"]
        assert all("mlflow.chat.tokenUsage" not in span.attributes for span in (mirror, *spans[:-1]))
        assert spans[-1].attributes.get("gen_ai.response.finish_reasons") == (None if step == "embed" else ["stop"])
    (streamed,) = children_of(trace, steps["ask for a stream"])
    assert streamed.attributes["gen_ai.request.stream"] is True
    assert streamed.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert children_of(trace, streamed)[0].attributes["error.type"] == "503"
    assert wait_for("the trace's tokens", lambda: summed(trace_id)) == total


def summed(trace_id: str) -> int:
    """Return the trace's tokens; MLflow reads a trace's sums before its spans, so they may come a moment later."""
    trace = read_trace(trace_id)
    return int((trace.info.token_usage or {}).get("total_tokens", 0)) if trace else 0


BODIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "responses": ("/v1/responses", {"input": CANARY}, "completed"),
    "responses stream": ("/v1/responses", {"input": CANARY, "stream": True}, "completed"),
    "completions": ("/v1/completions", {"prompt": CANARY}, "stop"),
    "messages": ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": CANARY}]}, "end_turn"),
    "messages stream": (
        "/v1/messages",
        {"max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": CANARY}]},
        "end_turn",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_other_formats(name: str, url: str, tracing: str, database: Database):
    """OpenAI's other routes and Anthropic's messages, with the tokens that the answer reports and none of its text."""
    path, body, finish_reason = BODIES[name]
    with httpx.Client(timeout=DEADLINE_S) as http, mlflow.start_span("step") as step:
        answer = wrap_httpx(http, [url]).post(f"{url}{path}", json={"model": "chat", **body})
    assert CANARY in answer.text
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    (attempt,) = assert_mirror(trace, mirror, step, [("openai/gpt-4o-mini", "OK")])
    assert mirror.name == "gateway/chat"
    assert attempt.attributes["gen_ai.response.finish_reasons"] == [finish_reason]
    reported = [int(count) for count in re.findall(r'"(?:output|completion)_tokens":\s*(\d+)', answer.text)]
    assert attempt.attributes["mlflow.chat.tokenUsage"]["output_tokens"] == reported[-1] > 0
    assert CANARY not in json.dumps(database.rows_of(step.trace_id), default=str)


def test_a_refused_call(client: openai.OpenAI):
    """A call that is refused is in the trace, by its status and its route and not by what it asked for."""
    with mlflow.start_span("step") as step, pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="unknown", messages=[USER])
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    assert_mirror(trace, mirror, step, [])
    assert (mirror.name, mirror.attributes["error.type"]) == ("gateway/chat/completions", "404")


def test_a_client_that_hangs_up(url: str, tracing: str):
    """A stream that the client leaves is marked so, attempt and all, with what was known up to then."""
    # The answer repeats the words in some 15 MB, which fit into no socket's buffer.
    body = {"model": "chat", "messages": [{"role": "user", "content": "word " * 100_000}], "stream": True}
    with (
        httpx.Client(timeout=DEADLINE_S) as http,
        mlflow.start_span("step") as step,
        wrap_httpx(http, [url]).stream("POST", f"{url}/v1/chat/completions", json=body) as response,
    ):
        next(response.iter_bytes())
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    assert mirror.attributes["error.type"] == "client_disconnect"
    assert mirror.name == "gateway/chat"
    (attempt,) = children_of(trace, mirror)
    assert attempt.attributes["mlflow.llm.model"] == "gpt-4o-mini"


def test_many_callers_at_once(client: openai.OpenAI):
    """Forty calls side by side in one trace: each mirror is under its own step."""

    def ask(number: int) -> Any:
        with mlflow.start_span(f"step {number}") as step:
            client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "word " * (number + 1)}])
        return step

    with mlflow.start_span("agent") as agent, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(contextvars.copy_context().run, ask, number) for number in range(40)]
        steps = [future.result() for future in futures]
    trace = mirrored(agent, 40)
    for number, step in enumerate(steps):
        (mirror,) = children_of(trace, step)
        (attempt,) = assert_mirror(trace, mirror, step, [("openai/gpt-4o-mini", "OK")])
        assert attempt.attributes["mlflow.chat.tokenUsage"]["input_tokens"] == number + 1


def test_no_mirror_without_a_caller(url: str, tracing: str, database: Database):
    """A request without a traceparent, or with an unsampled one, leaves nothing in the store."""
    unsampled = "00-deadbeefdeadbeefdeadbeefdeadbeef-deadbeefdeadbeef-00"
    for headers in ({}, {"traceparent": unsampled}):
        httpx.post(f"{url}/v1/chat/completions", json={"model": "chat", "messages": [USER]}, headers=headers)
    with httpx.Client(timeout=DEADLINE_S) as http, mlflow.start_span("step") as step:
        wrap_httpx(http, [url]).post(f"{url}/v1/chat/completions", json={"model": "chat", "messages": [USER]})
    mirrored(step)
    assert database.rows_of("tr-deadbeefdeadbeefdeadbeefdeadbeef") == []


def test_the_callers_trace_context_reaches_no_provider(client: openai.OpenAI, provider: Provider):
    """The gateway makes requests of its own; the provider sees no traceparent."""
    provider.clear()
    with mlflow.start_span("step"):
        client.chat.completions.create(model="chat", messages=[USER])
    (request,) = provider.requests
    assert request.header("traceparent") == []
