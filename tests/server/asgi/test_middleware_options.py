"""GatewayTracingMiddleware's options, and support for another gateway."""

import inspect
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

from agent_gateway_client.server import GatewayTracingMiddleware, gateway_attempt
from tests.support.asgi import Mirrors
from tests.support.middleware import TRACED, answer, fastapi_app, post, spans_of, starlette_app
from tests.support.server import SPAN_ID
from tests.support.wire_samples import CANARY, CHAT, MODEL, SAMPLES, TEXT

ENDPOINTS: dict[str, tuple[Any, str]] = {
    "a name": ("billing", "gateway/billing"),
    "a function": (lambda scope: scope["path_params"]["team"] + "-team", "gateway/red-team"),
    "a function that does not know": (lambda scope: None, "gateway/unknown"),
    "a function that returns a number": (lambda scope: 7, "gateway/7"),
    "a function that fails": (lambda scope: scope["no such key"], "gateway/unknown"),
    "nothing": (None, "gateway/chat"),
}


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_the_endpoints_name(name: str, mirrors: Mirrors):
    """The application may set the endpoint, also from its router's result; an error there costs only the name."""
    endpoint, expected = ENDPOINTS[name]
    app = FastAPI()

    @app.post("/{team}/chat/completions")
    async def serve(team: str, body: dict[str, Any]) -> Any:
        return answer(SAMPLES["chat"])

    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter, endpoint=endpoint, provider="openai")
    assert (await post(app, "/red/chat/completions")).status_code == 200
    assert [name for name, _ in spans_of(mirrors)] == [expected, f"provider/openai/{MODEL}"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": f"please {CANARY}"}, "gateway/chat/completions"),
        ({"model": [CANARY]}, "gateway/chat/completions"),
        ({}, "gateway/chat/completions"),
        ({"messages": [{"content": TEXT}] * 5_000, "model": "chat", "stream": False}, "gateway/chat"),
        ({"model": "chat", "messages": [{"content": TEXT}] * 5_000}, "gateway/chat"),
    ],
    ids=["a sentence", "no text", "none", "behind 500 KB", "before 500 KB"],
)
async def test_an_endpoint_named_by_the_request(body: Any, expected: str, mirrors: Mirrors):
    """Only text with the form of a model's name becomes the endpoint, however long the request is."""
    app = starlette_app(SAMPLES["chat"])
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    await post(app, CHAT, json=body)
    assert spans_of(mirrors)[0][0] == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1beta/models/gemini-2.0-flash:generateContent", "gateway/gemini-2.0-flash"),
        ("/openai/deployments/my-gpt/chat/completions", "gateway/my-gpt"),
        ("/v1beta/models/two%20words:generateContent", "gateway/generateContent"),
        ("/any/prefix/v1/messages", "gateway/v1/messages"),
    ],
)
async def test_an_endpoint_named_by_the_path(path: str, expected: str, mirrors: Mirrors):
    """Gemini's and Azure's requests have their model in the path."""
    app = starlette_app(SAMPLES["chat"])
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    await post(app, path, json={})
    assert spans_of(mirrors)[0][0] == expected


@pytest.mark.parametrize(
    ("path", "is_call"),
    [
        ("/v1/chat/completions", True),
        ("/team/llm/v1/completions", True),
        ("/embeddings", True),
        ("/openai/v1/responses", True),
        ("/anthropic/v1/messages", True),
        ("/v1beta/models/m:streamGenerateContent", True),
        ("/v1beta/models/m:embedContent", True),
        ("/threads/7/messages", False),
        ("/v1/chat/completions/", True),
        ("/v1/files", False),
        ("/", False),
    ],
)
async def test_which_requests_are_calls(path: str, is_call: bool, mirrors: Mirrors):
    """The routes of the known APIs are calls, below any prefix, and no others."""
    app = starlette_app(SAMPLES["chat"])
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    assert (await post(app, path)).status_code == 200
    assert bool(mirrors.spans) is is_call


async def test_the_application_says_which_requests_are_calls(mirrors: Mirrors, caplog: pytest.LogCaptureFixture):
    """A predicate decides by the scope; if it raises, the call is served without a mirror."""

    def is_call(scope: Any) -> bool:
        return bool(dict(scope["headers"])[b"x-tenant"] == b"ours")

    app = FastAPI()

    @app.post("/ask/{topic}")
    async def serve(topic: str, body: dict[str, Any]) -> Any:
        return {"answer": TEXT}

    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter, is_call=is_call)
    for tenant in ({"x-tenant": "ours"}, {"x-tenant": "theirs"}, {}):
        assert (await post(app, "/ask/x", headers={**TRACED, **tenant}, json={})).status_code == 200
    # Its name is the application's route, and no attempt is added.
    assert [name for name, _ in spans_of(mirrors)] == ["gateway/ask/{topic}"]
    assert "is_call() raised KeyError" in caplog.text


@pytest.mark.parametrize("strip", [False, True])
async def test_the_callers_trace_headers(strip: bool, mirrors: Mirrors):
    """They reach the application unchanged unless the option removes them."""
    seen: list[str] = []

    async def serve(request: Any) -> Response:
        seen.extend(name for name in request.headers if name in ("traceparent", "tracestate", "baggage", "x-kept"))
        return answer(SAMPLES["chat"])

    app = Starlette(routes=[Route(CHAT, serve, methods=["POST"])])
    app.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter, strip_trace_context=strip)
    await post(app, CHAT, headers={**TRACED, "tracestate": "a=1", "baggage": "b=2", "x-kept": "1"})
    assert sorted(seen) == (["x-kept"] if strip else ["baggage", "traceparent", "tracestate", "x-kept"])
    assert [len(span.parent.trace_state) for span in mirrors.spans] == [0, 0]


async def test_an_application_in_an_application(mirrors: Mirrors):
    """The middleware works on a mounted application, with the gateway's path below the mount."""
    inner = fastapi_app(SAMPLES["chat"])
    inner.add_middleware(GatewayTracingMiddleware, exporter=mirrors.exporter)
    await post(Starlette(routes=[Mount("/llm", inner)]), f"/llm{CHAT}")
    assert [name for name, _ in spans_of(mirrors)] == ["gateway/chat", f"provider/{MODEL}"]


class AcmeGateway(GatewayTracingMiddleware):
    """A made-up gateway: calls go to /acme/ask/ENDPOINT, and a response header lists the providers it tried."""

    def is_call(self, scope: Any) -> bool:
        return bool(scope["path"].startswith("/acme/ask/"))

    def observe(self, call: Any, scope: Any) -> Any:
        call.endpoint = scope["path"].rpartition("/")[2]
        call.request_type, call.operation = "acme/ask", "chat"
        context, _ = super().observe(call, scope)
        return context, self._read_log

    def _read_log(self, call: Any) -> None:
        for provider, model, error_type in self.app.log[call.parent.span_id]:
            with call.attempt(provider, model) as attempt:
                attempt.error_type = error_type


class AcmeApp:
    """That gateway's application, which logs its attempts by the caller's span."""

    def __init__(self) -> None:
        self.log = {SPAN_ID: [("acme-east", "m1", "503"), ("acme-west", "m1", None)]}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await Response(SAMPLES["chat"].body, media_type="application/json")(scope, receive, send)


async def test_another_gateway_is_one_small_class(mirrors: Mirrors):
    """An adapter for an unknown gateway is one class of under 40 lines, and its mirror is complete."""
    assert len(inspect.getsource(AcmeGateway).splitlines()) < 40
    await post(AcmeGateway(AcmeApp(), mirrors.exporter), "/acme/ask/travel")
    (gateway, _), (east, failed), (west, answered) = spans_of(mirrors)
    assert (gateway, east, west) == ("gateway/travel", "provider/acme-east/m1", "provider/acme-west/m1")
    assert (failed["error.type"], "error.type" in answered) == ("503", False)
    assert answered["mlflow.chat.tokenUsage"]["input_tokens"] == 100


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("tried", [False, True], ids=["turned away", "the provider's own"])
async def test_who_is_turned_away_leaves_no_mirror(status: int, tried: bool, mirrors: Mirrors):
    """A rejected caller does not write into a trace; a status that a provider answered with is mirrored."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if tried:
            gateway_attempt(provider="openai", model=MODEL).end(str(status))
        await Response(status_code=status)(scope, receive, send)

    app = GatewayTracingMiddleware(serve, mirrors.exporter)
    assert (await post(app, "/v1/chat/completions")).status_code == status
    assert [name for name, _ in spans_of(mirrors)] == (
        ["gateway/chat/completions", f"provider/openai/{MODEL}"] if tried else []
    )
