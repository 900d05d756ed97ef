"""probe.py: the companion's answer to a probe, and to no other request."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from agent_gateway_client import __version__
from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.export import Exporter, Refused, Unavailable
from agent_gateway_client.server.probe import answer
from tests.support.asgi import TRACED, Client, Mirrors, answering, body, http_scope, start
from tests.support.server import DEADLINE_S, TRACEPARENT, MemoryDestination, submit

PROBE = [(b"Agent-Gateway-Probe", b"1")]


async def exchange(headers: Iterable[tuple[bytes, bytes]], status: int = 200, **options: Any) -> tuple[Any, Any, Any]:
    """Send one request through the middleware; returns what the application got, what was sent, and the answer."""
    seen: list[Any] = []
    app = answering(start(status), body(b"{}"))

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["headers"])
        await app(scope, receive, send)

    client = Client()
    middleware = GatewayTracingMiddleware(noting, Mirrors().exporter)
    await middleware(http_scope(headers, **options), client.receive, client.send)
    told = [value for name, value in client.sent[0]["headers"] if name == b"agent-gateway-companion"]
    return seen[0], client.sent, json.loads(told[0]) if told else None


async def test_who_asks_is_told():
    """The version, the caller's context as parsed, and the exporter's state. The application does not see the probe."""
    seen, _, told = await exchange([*TRACED, *PROBE])
    assert told == {
        "version": __version__,
        "traceparents": 1,
        "traceparent": TRACEPARENT,
        "exporter": "mlflow",
        "problem": None,
    }
    assert seen == TRACED


@pytest.mark.parametrize("headers", [[], TRACED, [(b"agent-gateway-probes", b"1")]])
async def test_who_does_not_ask_gets_the_same_bytes(headers: list[tuple[bytes, bytes]]):
    seen, sent, told = await exchange(headers)
    assert told is None
    assert sent == [start(), body(b"{}")]
    assert seen == headers


@pytest.mark.parametrize("status", [401, 403])
async def test_who_is_turned_away_is_told_nothing(status: int):
    _, sent, told = await exchange([*TRACED, *PROBE], status)
    assert told is None
    assert sent == [start(status), body(b"{}")]


@pytest.mark.parametrize(
    ("status", "is_answered"), [(400, False), (404, False), (422, False), (500, True), (503, True)]
)
async def test_a_call_that_fails(status: int, is_answered: bool):
    """A failed call is answered, a rejected one is not: the caller may have no key."""
    assert ((await exchange([*TRACED, *PROBE], status))[2] is not None) is is_answered


async def test_only_calls_of_a_model_are_answered():
    _, _, told = await exchange([*TRACED, *PROBE], path="/v1/models", method="GET")
    assert told is None


@pytest.mark.parametrize(
    ("headers", "count"),
    [([], 0), ([*TRACED, *TRACED], 2), ([(b"traceparent", b"\xff<script>")], 1)],
    ids=["none", "two", "invalid"],
)
async def test_a_context_that_does_not_arrive_whole(headers: list[tuple[bytes, bytes]], count: int):
    """The answer has the number of headers received, and nothing of their content."""
    _, _, told = await exchange([*headers, *PROBE])
    assert (told["traceparents"], told["traceparent"]) == (count, None)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ConnectionError("canary: an address"), "ConnectionError"),
        (Unavailable("HTTP 401"), "HTTP 401"),
        (Refused("the store said 404"), "refused: the store said 404"),
    ],
)
def test_the_exporters_problem(error: Exception, problem: str):
    """It is a status or class, never a message, and is shown until mirrors are accepted again."""
    errors = [error]

    def on_send(names: list[str]) -> None:
        if errors:
            raise errors[0]

    destination = MemoryDestination(on_send)
    exporter = Exporter(destination)
    submit(exporter, "a")
    destination.wait_for_tries(2)
    assert exporter.problem == problem
    assert json.loads(answer([], exporter)[1])["problem"] == problem
    errors.clear()
    submit(exporter, "b")
    assert exporter.flush(DEADLINE_S)
    assert exporter.problem is None
