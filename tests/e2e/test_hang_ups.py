"""Clients that disconnect, and clients that stop reading once they have the whole answer."""

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import mlflow
import pytest
from mlflow.entities import Span

from agent_gateway_client import trace_headers
from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import (
    USER,
    Database,
    assert_linked,
    assert_mirror,
    async_openai_client,
    httpx_client,
    mirrored,
    mirrors_in,
    open_step,
    openai_client,
    wait_until_noticed,
)
from tests.support.server import assert_told

LONG = {
    "chat": ("/openai/v1/chat/completions", {"model": "long", "messages": [USER]}, "openai/gpt-4o-mini-long"),
    "unified": ("/mlflow/v1/chat/completions", {"model": "long", "messages": [USER]}, "openai/gpt-4o-mini-long"),
    "responses": ("/openai/v1/responses", {"model": "long", "input": "one two"}, "openai/gpt-4o-mini-long"),
    "anthropic": (
        "/anthropic/v1/messages",
        {"model": "long-claude", "max_tokens": 9, "messages": [USER]},
        "anthropic/claude-long",
    ),
    "proxy": (
        "/proxy/long/v1/chat/completions",
        {"model": "gpt-4o-mini-long", "messages": [USER]},
        "openai/gpt-4o-mini-long",
    ),
}
"""Streams that take five seconds: path, body, and the attempt."""


@pytest.fixture(scope="module", autouse=True)
def long_claude(gateway: DemoGateway, tracing: str) -> None:
    """An endpoint for Anthropic's API with a long stream."""
    gateway.create_endpoint("long-claude", ["claude-long"], provider="anthropic")


def assert_hung_up(step: Span, attempt: str) -> None:
    """Assert that after a disconnect mid-stream the call's mirror is there, ended, marked and linked."""
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    (span,) = assert_mirror(trace, mirror, step, [(attempt, "ERROR")])
    for ended in (mirror, span):
        assert ended.status.status_code == "ERROR"
        assert ended.attributes["error.type"] == "client_disconnect"
    assert_told(mirror.attributes, {"http.response.status_code": 200, "gen_ai.request.stream": True})
    assert mirror.attributes["gen_ai.response.time_to_first_chunk"] > 0
    own = assert_linked(mirror)
    assert own.info.state == "ERROR"
    assert {span.name for span in own.data.spans} == {mirror.name, span.name}
    assert all(span.end_time_ns for span in own.data.spans)


@pytest.fixture(scope="module")
def hung_up(gateway: DemoGateway, database: Database, long_claude: None) -> dict[str, Span]:
    """The caller's spans of clients that read three events and then closed the connection."""
    steps = {}
    with httpx_client(gateway) as http:
        for name, (path, body, _) in LONG.items():
            with open_step() as step:
                with http.stream("POST", path, json={**body, "stream": True}) as answer:
                    lines = answer.iter_lines()
                    assert [line for _, line in zip(range(3), lines, strict=False)]
                wait_until_noticed(step, database)
            steps[name] = step
    return steps


@pytest.mark.parametrize("name", LONG)
def test_a_client_that_hangs_up_mid_stream(name: str, hung_up: dict[str, Span]):
    """On each streaming route, the mirror is there, ended, marked as the client's disconnect, and linked."""
    assert_hung_up(hung_up[name], LONG[name][2])


def test_an_agent_that_breaks_out_of_a_stream(gateway: DemoGateway, database: Database):
    """The SDK's close() in the middle of a stream is a disconnect."""
    with openai_client(gateway) as client, open_step() as step:
        stream = client.chat.completions.create(model="long", messages=[USER], stream=True)  # type: ignore[list-item]
        next(stream)
        stream.close()
        wait_until_noticed(step, database)
    assert_hung_up(step, "openai/gpt-4o-mini-long")


def test_a_task_that_is_cancelled_mid_stream(gateway: DemoGateway, database: Database):
    """Cancelling an async agent's task is a disconnect."""

    async def run() -> Span:
        async with async_openai_client(gateway) as client:
            with open_step() as step:
                has_begun = asyncio.Event()

                async def read() -> None:
                    messages: Any = [USER]
                    async for _ in await client.chat.completions.create(model="long", messages=messages, stream=True):
                        has_begun.set()

                task = asyncio.create_task(read())
                await has_begun.wait()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await asyncio.to_thread(wait_until_noticed, step, database)
        return step

    assert_hung_up(asyncio.run(run()), "openai/gpt-4o-mini-long")


def events(connection: socket.socket) -> Iterator[bytes]:
    """Read the lines of an answer from a socket."""
    left = b""
    while data := connection.recv(65536):
        *lines, left = (left + data).split(b"\n")
        yield from lines


ENDINGS = {
    "chat": ("/openai/v1/chat/completions", {"model": "chat", "messages": [USER]}, b"[DONE]"),
    "responses": ("/openai/v1/responses", {"model": "responses", "input": "one two"}, b'"response.completed"'),
    "anthropic": (
        "/anthropic/v1/messages",
        {"model": "claude", "max_tokens": 9, "messages": [USER]},
        b'"message_stop"',
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_client_that_stops_after_the_last_event(name: str, gateway: DemoGateway):
    """A client that closes the connection once it has the event that ends the stream has not disconnected early."""
    path, body, last = ENDINGS[name]
    url = urlsplit(f"{gateway.gateway_url}{path}")
    content = json.dumps({**body, "stream": True}).encode()
    steps = []
    for _ in range(5):
        with mlflow.start_span("step") as step:
            headers = trace_headers(url.geturl(), [gateway.gateway_url])
            head = [f"POST {url.path} HTTP/1.1", f"Host: {url.netloc}", f"Content-Length: {len(content)}"]
            head += ["Content-Type: application/json", *(f"{name}: {value}" for name, value in headers.items())]
            with socket.create_connection((url.hostname, url.port), 60) as connection:
                connection.sendall("\r\n".join([*head, "", ""]).encode() + content)
                assert next(line for line in events(connection) if last in line)
        steps.append(step)
    for step in steps:
        (mirror,) = mirrors_in(mirrored(step))
        assert mirror.status.status_code == "OK"
        assert "error.type" not in mirror.attributes
        assert assert_linked(mirror).info.state == "OK"


def test_a_client_that_does_not_wait_for_the_answer(gateway: DemoGateway, database: Database):
    """A client that gives up before an answer without a stream is mirrored and linked too, and nothing is left open."""
    with httpx_client(gateway) as http, open_step() as step:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/openai/v1/chat/completions", json={"model": "slow", "messages": [USER]}, timeout=0.3)
        wait_until_noticed(step, database)
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    assert mirror.name == "gateway/slow"
    assert_linked(mirror)
