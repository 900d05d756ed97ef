"""authorization.py: which callers may join a trace."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware

from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.server import GatewayTracingMiddleware, authorization, current_gateway_call, gateway_call
from agent_gateway_client.server.authorization import may_join_from_environment
from tests.support.asgi import TRACED as TRACED_LINES
from tests.support.asgi import Client, Mirrors, answering, body, http_scope, start
from tests.support.middleware import TRACED, answer, fastapi_app, post
from tests.support.server import TRACEPARENT
from tests.support.wire_samples import CHAT, SAMPLES


def by_header(scope: Any) -> bool:
    return dict(scope["headers"]).get(b"x-tenant") == b"ours"


async def by_header_async(scope: Any) -> bool:
    await asyncio.sleep(0)
    return by_header(scope)


class ByHeader:
    """A predicate that is an object."""

    async def __call__(self, scope: Any) -> bool:
        return by_header(scope)


@pytest.mark.parametrize("may_join", [by_header, by_header_async, ByHeader()], ids=["sync", "async", "object"])
async def test_a_refused_caller_is_served_without_a_mirror(may_join: Any, mirrors: Mirrors):
    """The predicate decides only about the mirror: all callers get the same answer."""
    app = fastapi_app(SAMPLES["chat"])
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter, may_join=may_join)
    answers = [await post(app, CHAT, headers={**TRACED, "x-tenant": tenant}) for tenant in ("theirs", "ours", "")]
    assert [one.status_code for one in answers] == [200, 200, 200]
    assert len({one.content for one in answers}) == 1
    assert len(mirrors.spans) == 2, "a gateway's span and its attempt's"


class Tokens(AuthenticationBackend):
    async def authenticate(self, conn: Any) -> Any:
        return AuthCredentials(), SimpleUser(conn.headers["authorization"])


@pytest.mark.parametrize("user", ["alice", "mallory"])
async def test_it_sees_what_authentication_has_noted(user: str, mirrors: Mirrors):
    """It is called after the request was served, so the middleware may be outside the authentication."""
    app = FastAPI()

    @app.post(CHAT)
    async def serve(body: dict[str, Any]) -> Any:
        assert current_gateway_call() is not None
        return answer(SAMPLES["chat"])

    app.add_middleware(AuthenticationMiddleware, backend=Tokens())
    app.add_middleware(
        GatewayTracingMiddleware, exporter=mirrors.exporter, may_join=lambda scope: scope["user"].username == "alice"
    )
    assert (await post(app, CHAT, headers={**TRACED, "authorization": user})).status_code == 200
    assert bool(mirrors.spans) is (user == "alice")


async def fails_async(scope: Any) -> bool:
    raise LookupError("canary")


@pytest.mark.parametrize("may_join", [lambda scope: scope["no such key"], fails_async], ids=["sync", "async"])
async def test_a_predicate_that_fails_has_not_allowed_it(
    may_join: Any, mirrors: Mirrors, logged: pytest.LogCaptureFixture
):
    """The request is served without a mirror, and one warning says so without the error's message."""
    app = fastapi_app(SAMPLES["chat"])
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter, may_join=may_join)
    for _ in range(3):
        assert (await post(app, CHAT)).status_code == 200
    assert mirrors.spans == []
    assert [message.partition(" raised ")[0] for message in logged.messages] == ["may_join()"]
    assert "canary" not in logged.text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 422, 429])
@pytest.mark.parametrize("known", ["nothing", "the caller", "an attempt"])
async def test_a_refusal_leaves_nothing_and_says_nothing(status: int, known: str, mirrors: Mirrors):
    """Many applications reject a request before they check its key, unless they say that they have checked it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        call = current_gateway_call()
        assert call is not None
        if known == "the caller":
            call.caller_is_known = True
        elif known == "an attempt":
            call.attempt("openai").end(str(status))
        await answering(start(status), body(b"{}"))(scope, receive, send)

    client = Client()
    probe = [*TRACED_LINES, (b"agent-gateway-probe", b"1")]
    await GatewayTracingMiddleware(app, mirrors.exporter)(http_scope(probe), client.receive, client.send)
    let_in = known != "nothing"
    assert bool(mirrors.spans) is let_in
    assert any(name == b"agent-gateway-companion" for name, _ in client.sent[0]["headers"]) is let_in


async def test_a_predicate_that_never_answers(
    mirrors: Mirrors, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """It is given up after a timeout, even if it ignores its cancellation; this is counted and logged once."""
    monkeypatch.setattr(authorization, "MAX_SECONDS", 0.01)
    goes_on = asyncio.Event()

    async def never(scope: Any) -> bool:
        while not goes_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await goes_on.wait()
        return True

    before = authorization.timeouts()
    app = fastapi_app(SAMPLES["chat"])
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter, may_join=never)
    for _ in range(2):
        assert (await post(app, CHAT)).status_code == 200
    goes_on.set()
    assert mirrors.spans == []
    assert authorization.timeouts() == before + 2
    assert [message.partition(" within ")[0] for message in logged.messages] == ["may_join() did not answer"]


async def test_it_is_not_asked_about_requests_that_are_not_traced(mirrors: Mirrors):
    """It is not called for these requests and costs nothing."""
    asked: list[Any] = []
    app = fastapi_app(SAMPLES["chat"])
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter, may_join=asked.append)
    await post(app, CHAT, headers={})
    await post(app, CHAT, headers={"traceparent": TRACEPARENT[:-1] + "0"})
    assert asked == []
    await post(app, CHAT)
    assert len(asked) == 1
    assert mirrors.spans == [], "None is no yes"


@pytest.mark.parametrize("may_join", [True, False])
def test_a_gateway_call_is_told_by_its_own_code(may_join: bool, mirrors: Mirrors):
    """Code that handles its requests itself already knows the caller."""
    with gateway_call(TRACED, endpoint="chat", may_join=may_join, exporter=mirrors.exporter) as call:
        call.attempt(provider="openai").end()
    assert bool(mirrors.spans) is may_join


def test_the_environment_names_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """AGENT_GATEWAY_MAY_JOIN is package.module:function; unset or empty, all may join."""
    assert may_join_from_environment() is None
    monkeypatch.setenv("AGENT_GATEWAY_MAY_JOIN", "")
    assert may_join_from_environment() is None
    (tmp_path / "our_tenants.py").write_text("def may_join(scope):\n    return 'yes'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("AGENT_GATEWAY_MAY_JOIN", "our_tenants:may_join")
    found = may_join_from_environment()
    assert found is not None
    assert found({}) == "yes"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module_of_ours:may_join", "ModuleNotFoundError"),
        ("os.path:no_such_function", "AttributeError"),
        ("os.path:sep", "not a str"),
        ("os.path", "package.module:function"),
        (":f", "package.module:function"),
        ("a b:c", "package.module:function"),
    ],
)
def test_a_name_that_cannot_work_is_an_error_at_the_start(value: str, message: str, monkeypatch: pytest.MonkeyPatch):
    """The error names the variable, its value, and what to write."""
    monkeypatch.setenv("AGENT_GATEWAY_MAY_JOIN", value)
    with pytest.raises(ConfigurationError, match=message) as raised:
        may_join_from_environment()
    assert f"AGENT_GATEWAY_MAY_JOIN is {value!r}" in str(raised.value)
