"""observed/pages.py: the companion's pages under ASGI and WSGI, and who may read them."""

import json
import os
from collections.abc import Iterable
from typing import Any

import pytest

from agent_gateway_client import __version__
from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.server import GatewayTracingMiddleware, GatewayTracingWSGIMiddleware
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.observed import prometheus
from tests.support.asgi import Client, answering, body, http_scope, start
from tests.support.server import MemoryDestination, Store, submit

TOKEN = "a-token-of-the-tests"
AUTHORIZED = [(b"Authorization", f"Bearer {TOKEN}".encode())]
STATUS = "/agent-gateway/status"


class Guarded(GatewayTracingMiddleware):
    """A gateway that rejects unauthenticated requests to all paths, as MLflow's does with basic-auth."""

    app_guards_pages = True


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_GATEWAY_STATUS_TOKEN", TOKEN)


async def get(
    path: str = STATUS,
    headers: Iterable[tuple[bytes, bytes]] = (),
    *,
    kind: type[GatewayTracingMiddleware] = GatewayTracingMiddleware,
    exporter: Exporter | None = None,
    answers: int = 404,
    **scope: Any,
) -> tuple[int, dict[str, str], bytes]:
    """Request a page from a gateway; returns the response's status, headers and body."""
    app = answering(start(answers), body(b"the application's"))
    middleware = kind(app, exporter or Exporter(MemoryDestination()))
    client = Client()
    await middleware({**http_scope(headers, path=path), "method": "GET", **scope}, client.receive, client.send)
    lines = {name.decode(): value.decode() for name, value in client.sent[0]["headers"]}
    return client.sent[0]["status"], lines, client.content


async def test_the_status(token: None):
    """An operator's first questions: is it there, what is its destination, what waits, what was lost, and why."""
    store = Store(rejected=("b",))
    exporter = Exporter(MemoryDestination(store))
    submit(exporter, "abc")
    assert exporter.flush()
    status, headers, text = await get(headers=AUTHORIZED, exporter=exporter)
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "application/json", "no-store")
    told = json.loads(text)
    assert told.pop("last_problem")["problem"] == "refused: it was told to"
    assert told == {
        "version": __version__,
        "pid": os.getpid(),
        "destination": "MemoryDestination",
        "may_join": "all",
        "upstreams": [],
        "submitted": 3,
        "sent": 2,
        "waiting": 0,
        "dropped": {"refused": 1},
        "rejected_spans": 0,
        "problem": "refused: it was told to",
    }
    exporter.shutdown()


async def test_a_store_that_is_away(token: None):
    """It does not fail the probe: requests are served as before, and a restart would lose what waits."""
    destination = MemoryDestination(Store(away=True))
    exporter = Exporter(destination)
    submit(exporter, "a")
    destination.wait_for_tries(2)
    status, _, text = await get(headers=AUTHORIZED, exporter=exporter)
    told = json.loads(text)
    assert (status, told["waiting"], told["problem"]) == (200, 1, "ConnectionError")
    assert b"canary" not in text
    exporter.shutdown(0.1)


@pytest.mark.parametrize(
    "headers", [[], [(b"authorization", b"Bearer another-token-of-some")], [(b"authorization", b"")]]
)
async def test_strangers_are_turned_away(token: None, headers: list[tuple[bytes, bytes]]):
    """The answer says what to send, and nothing else; the application does not get the request."""
    for path in (STATUS, "/below/agent-gateway/metrics"):
        for kind in (GatewayTracingMiddleware, Guarded):
            status, lines, text = await get(path, headers, kind=kind)
            assert (status, lines["www-authenticate"]) == (401, "Bearer")
            assert "AGENT_GATEWAY_STATUS_TOKEN" in json.loads(text)["detail"]


async def test_without_a_token_there_is_no_page():
    """The middleware cannot check the keys of a custom gateway, so nobody may read the page."""
    assert await get() == (404, {"content-type": "application/json"}, b"the application's")


@pytest.mark.parametrize("answers", [200, 302, 401, 403, 500])
async def test_a_gateway_that_turns_strangers_away_answers_itself(answers: int):
    """Only a request that reaches "no such page" was authenticated."""
    assert (await get(kind=Guarded, answers=answers))[::2] == (answers, b"the application's")


async def test_a_gateway_that_lets_somebody_in():
    status, _, text = await get(kind=Guarded)
    assert (status, json.loads(text)["version"]) == (200, __version__)


async def test_only_get_and_head(token: None):
    """A POST there goes to the application, and HEAD gets no body."""
    assert (await get(headers=AUTHORIZED, method="POST"))[::2] == (404, b"the application's")
    status, lines, text = await get(headers=AUTHORIZED, method="HEAD")
    assert (status, text) == (200, b"")
    assert int(lines["content-length"]) > 100


async def test_all_other_requests_are_the_applications(token: None):
    for path in ("/agent-gateway/status/", "/agent-gateway", "/status"):
        assert (await get(path, AUTHORIZED))[::2] == (404, b"the application's")


@pytest.mark.parametrize("value", ["short", "a token with spaces in it", "ein-Schlüssel-mit-Umlaut"])
async def test_a_token_that_cannot_work(value: str, monkeypatch: pytest.MonkeyPatch):
    """An invalid token fails the start, and the error does not repeat it."""
    monkeypatch.setenv("AGENT_GATEWAY_STATUS_TOKEN", value)
    with pytest.raises(ConfigurationError, match="at least 16") as raised:
        GatewayTracingWSGIMiddleware(lambda environ, start_response: [], Exporter(MemoryDestination()))
    assert value not in str(raised.value)
    client = Client()
    middleware = GatewayTracingMiddleware(answering(start()), Exporter(MemoryDestination()))
    await middleware({"type": "lifespan"}, client.receive, client.send)
    assert client.sent[0]["type"] == "lifespan.startup.failed"


def get_by_wsgi(**environ: str) -> tuple[str, dict[str, str], bytes]:
    """Request the status from a WSGI gateway."""
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("404 Not Found", [("content-type", "text/plain")])
        return [b"the application's"]

    middleware = GatewayTracingWSGIMiddleware(app, Exporter(MemoryDestination()))
    answer = middleware(
        {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/below", "PATH_INFO": STATUS, **environ},
        lambda status, headers, *rest: seen.extend([status, dict(headers)]),
    )
    return seen[0], seen[1], b"".join(answer)


def test_wsgi(token: None):
    status, headers, text = get_by_wsgi(HTTP_AUTHORIZATION=f"Bearer {TOKEN}")
    assert (status, headers["content-length"]) == ("200 OK", str(len(text)))
    assert json.loads(text)["version"] == __version__
    assert get_by_wsgi()[0] == "401 Unauthorized"
    assert get_by_wsgi(REQUEST_METHOD="POST")[0] == "404 Not Found"


def test_wsgi_without_a_token():
    assert get_by_wsgi()[::2] == ("404 Not Found", b"the application's")


async def test_metrics_without_prometheus(token: None, monkeypatch: pytest.MonkeyPatch):
    """The metrics page says what to install; the status page works."""
    monkeypatch.setattr(prometheus, "is_installed", lambda: False)
    status, _, text = await get("/agent-gateway/metrics", AUTHORIZED)
    assert (status, "pip install prometheus_client" in json.loads(text)["detail"]) == (404, True)
    assert (await get(headers=AUTHORIZED))[0] == 200
