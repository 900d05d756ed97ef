"""wrap_httpx(): the hook on httpx and httpx2 clients, sync and async, checked on the wire."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import openai
import pytest
from opentelemetry import baggage, context, trace

from agent_gateway_client import unwrap, wrap_httpx
from agent_gateway_client.errors import ConfigurationError
from tests.support.client import (
    GATEWAY,
    OTHER,
    TRACEPARENT,
    BrokenSpan,
    Wire,
    each_kind,
    each_stack,
    isolated,  # noqa: F401
    named_by,
    remote_span,
    restart_mlflow,
    value_of,
    warnings_in,
)


@each_stack
@each_kind
async def test_a_request_names_the_span_it_is_sent_under(stack: Any, kind: str):
    """Each request has the span that is innermost when it is sent, not when the client was made or wrapped."""
    wire = Wire()
    with mlflow.start_span("setup"):
        client = wrap_httpx(wire.client(stack, kind, base_url=GATEWAY))
    with mlflow.start_span("agent") as agent:
        await value_of(client.get("/v1/models"))
        with mlflow.start_span("tool") as tool:
            await value_of(client.post("/v1/chat", json={}))
        await value_of(client.request("DELETE", GATEWAY))
    assert wire.sent() == [[named_by(agent)], [named_by(tool)], [named_by(agent)]]
    assert wire.sent("tracestate") == [[], [], []]


@each_stack
@each_kind
async def test_without_a_span_nothing_is_sent_and_one_warning_given(
    stack: Any, kind: str, caplog: pytest.LogCaptureFixture
):
    """Without an active span the request is sent unchanged, and the first one gives a warning."""
    wire, plain = Wire(), Wire()
    client = wrap_httpx(wire.client(stack, kind, base_url=GATEWAY))
    for _ in range(2):
        await value_of(client.post("/v1"))
        await value_of(plain.client(stack, kind, base_url=GATEWAY).post("/v1"))
    assert wire.requests == plain.requests
    (warning,) = warnings_in(caplog)
    assert "no span was active" in warning
    assert "mlflow.set_experiment()" in warning


@each_stack
@pytest.mark.parametrize("method", ["stream", "send", "send stream"])
async def test_every_way_to_send_is_covered(stack: Any, method: str):
    """stream(), and send() of a request built before, have the context at the time of sending."""
    wire = Wire()
    client = wrap_httpx(wire.client(stack, base_url=GATEWAY))
    request = client.build_request("POST", "/v1", content=b"x")
    with mlflow.start_span("agent") as span:
        if method == "stream":
            with client.stream("GET", "/v1") as response:
                response.read()
        else:
            client.send(request, stream=method == "send stream").read()
    assert wire.sent() == [[named_by(span)]]


@each_stack
def test_a_request_sent_twice_names_each_time_the_span_of_that_time(stack: Any):
    """A request object that is sent again has the span active then, and no header if there is none."""
    wire = Wire()
    client = wrap_httpx(wire.client(stack, base_url=GATEWAY))
    request = client.build_request("GET", "/v1")
    with mlflow.start_span("first") as first:
        client.send(request)
    with mlflow.start_span("second") as second:
        client.send(request)
    client.send(request)
    assert wire.sent() == [[named_by(first)], [named_by(second)], []]


@each_stack
@each_kind
@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT", "tRaCePaReNt"])
@pytest.mark.parametrize("where", ["request", "client", "hook", "bytes"])
async def test_a_traceparent_that_is_there_stays_alone(stack: Any, kind: str, name: str, where: str):
    """A user's own traceparent, in any case and from any source, is the only one on the wire."""
    wire = Wire()

    def hook(request: Any) -> None:
        request.headers[name] = TRACEPARENT

    async def async_hook(request: Any) -> None:
        hook(request)

    options: dict[str, Any] = {"base_url": GATEWAY}
    if where == "client":
        options["headers"] = {name: TRACEPARENT}
    elif where == "hook":
        options["event_hooks"] = {"request": [hook if kind == "Client" else async_hook]}
    client = wrap_httpx(wire.client(stack, kind, **options))
    headers = {"request": {name: TRACEPARENT}, "bytes": [(name.encode(), TRACEPARENT.encode())]}.get(where)
    with mlflow.start_span("agent"):
        await value_of(client.get("/v1", headers=headers))
    assert wire.sent() == [[TRACEPARENT]]


@each_stack
def test_an_unsampled_span_is_sent_as_unsampled(stack: Any, monkeypatch: pytest.MonkeyPatch):
    """A span that MLflow does not sample is sent with the sampled bit off."""
    monkeypatch.setenv("MLFLOW_TRACE_SAMPLING_RATIO", "0")
    restart_mlflow()
    wire = Wire()
    with mlflow.start_span("agent"):
        wrap_httpx(wire.client(stack, base_url=GATEWAY)).get("/v1")
    ((value,),) = wire.sent()
    assert int(value[-2:], 16) & 1 == 0


@each_stack
def test_tracestate_is_relayed_and_baggage_is_not(stack: Any):
    """The span's tracestate is sent along; OpenTelemetry's baggage is not."""
    wire = Wire()
    client = wrap_httpx(wire.client(stack, base_url=GATEWAY))
    with remote_span("vendor=1,other=2") as value:
        token = context.attach(baggage.set_baggage("user", "somebody"))
        client.get("/v1")
        context.detach(token)
    assert (wire.sent(), wire.sent("tracestate"), wire.sent("baggage")) == (
        [[value]],
        [["vendor=1,other=2"]],
        [[]],
    )


@each_stack
def test_a_second_attempt_of_the_clients_auth_carries_it_once(stack: Any):
    """A request that the client's own auth flow sends again has the header once each time."""

    class Twice(stack.Auth):
        def auth_flow(self, request: Any) -> Any:
            response = yield request
            if response.status_code == 401:
                request.headers["authorization"] = "Bearer key"
                yield request

    wire = Wire(lambda request: 200 if "authorization" in request.headers else 401)
    client = wrap_httpx(wire.client(stack, base_url=GATEWAY, auth=Twice()))
    with mlflow.start_span("agent") as span:
        assert client.get("/v1").status_code == 200
    assert wire.sent() == [[named_by(span)]] * 2


@each_stack
def test_a_mounted_transport_is_covered(stack: Any):
    """A proxy or another transport that the client mounts for a URL gets the header too."""
    wire, unused = Wire(), Wire()
    client = unused.client(stack, mounts={"http://gw.test": stack.MockTransport(wire)}, base_url=GATEWAY)
    with mlflow.start_span("agent") as span:
        wrap_httpx(client).get("/v1")
    assert (wire.sent(), unused.sent()) == ([[named_by(span)]], [])


@each_stack
def test_threads_that_share_a_client_do_not_mix(stack: Any):
    """Requests of many threads over one client each have their own thread's span as parent."""
    wire = Wire()
    client = wrap_httpx(wire.client(stack, base_url=GATEWAY))

    def work(number: int) -> tuple[str, str]:
        with mlflow.start_span("thread") as span:
            client.get(f"/{number}")
            return f"{GATEWAY}/{number}", named_by(span)

    with ThreadPoolExecutor(8) as pool:
        expected = dict(pool.map(work, range(40)))
    assert {url: value for url, (value,) in zip(wire.urls, wire.sent(), strict=True)} == expected


@each_stack
@each_kind
async def test_the_users_hooks_are_kept_and_run_first(stack: Any, kind: str):
    """The user's event hooks stay in place and are called; unwrap() leaves exactly them."""
    seen: list[Any] = []

    def on_request(request: Any) -> None:
        seen.append("traceparent" in request.headers)

    async def on_request_async(request: Any) -> None:
        on_request(request)

    def on_response(response: Any) -> None:
        seen.append(response.status_code)

    async def on_response_async(response: Any) -> None:
        on_response(response)

    is_sync = kind == "Client"
    hooks = {
        "request": [on_request if is_sync else on_request_async],
        "response": [on_response if is_sync else on_response_async],
    }
    client = Wire().client(stack, kind, base_url=GATEWAY, event_hooks=hooks)
    before = {name: list(found) for name, found in client.event_hooks.items()}
    wrap_httpx(client)
    with mlflow.start_span("agent"):
        await value_of(client.get("/v1"))
    assert seen == [False, 200]
    assert client.event_hooks["response"] == before["response"]
    assert client.event_hooks["request"][:-1] == before["request"]
    assert unwrap(client) is client
    assert client.event_hooks == before
    assert hooks == before


@each_stack
@each_kind
async def test_wrapping_twice_is_the_same_as_once(stack: Any, kind: str):
    """A second wrap returns the same object and adds its gateways but no hook; one unwrap removes all."""
    wire = Wire()
    client = wire.client(stack, kind, base_url=GATEWAY)
    assert wrap_httpx(client) is client
    assert wrap_httpx(wrap_httpx(client), [OTHER]) is client
    assert len(client.event_hooks["request"]) == 1
    with mlflow.start_span("agent") as span:
        for url in ("/v1", OTHER, "http://third.test"):
            await value_of(client.get(url))
        unwrap(client)
        await value_of(client.get("/v1"))
    assert wire.sent() == [[named_by(span)], [named_by(span)], [], []]
    assert client.event_hooks["request"] == []


@pytest.mark.parametrize("what", [None, "client", 5, object(), dict])
def test_unwrap_leaves_anything_else_alone(what: Any):
    """unwrap() of a client that was never wrapped returns it without a warning."""
    assert unwrap(what) is what


@each_stack
def test_a_client_without_a_base_url_needs_gateways(stack: Any, monkeypatch: pytest.MonkeyPatch):
    """Such a client is rejected until its gateways are set, in the call or in the environment."""
    wire = Wire()
    with pytest.raises(ConfigurationError, match="no base_url"):
        wrap_httpx(wire.client(stack))
    monkeypatch.setenv("AGENT_GATEWAY_URLS", GATEWAY)
    with mlflow.start_span("agent") as span:
        client = wrap_httpx(wire.client(stack))
        client.get(f"{GATEWAY}/v1")
        client.get(OTHER)
    assert wire.sent() == [[named_by(span)], []]


@each_stack
@pytest.mark.parametrize("base_url", ["https://api.openai.com/v1", "/v1", "localhost:5000"])
def test_a_bad_base_url_is_refused_and_leaves_the_client_alone(stack: Any, base_url: str):
    """A vendor's public API, or an invalid URL, raises an error immediately, and no hook is set."""
    client = Wire().client(stack, base_url=base_url)
    with pytest.raises(ConfigurationError):
        wrap_httpx(client)
    assert client.event_hooks["request"] == []


@each_stack
@pytest.mark.parametrize("what", ["None", "str", "module", "Client", "AsyncClient", "OpenAI", "Request"])
@pytest.mark.parametrize("gateways", [None, [GATEWAY]])
def test_what_is_no_client_is_one_clear_error(stack: Any, what: str, gateways: list[str] | None):
    """Anything but a client, including its class, is rejected with a hint on what to use instead."""
    wrong = {
        "None": None,
        "str": GATEWAY,
        "module": stack,
        "Client": stack.Client,
        "AsyncClient": stack.AsyncClient,
        "OpenAI": openai.OpenAI(api_key="key", base_url=GATEWAY),
        "Request": stack.Request("GET", GATEWAY),
    }[what]
    with pytest.raises(ConfigurationError, match=r"wrap_httpx\(\) takes .* client, not .*wrap_openai.*trace_headers"):
        wrap_httpx(wrong, gateways)


@pytest.mark.usefixtures("guards_hold")
@each_stack
@each_kind
async def test_the_hook_never_fails_a_call(stack: Any, kind: str, caplog: pytest.LogCaptureFixture):
    """If something fails inside, the request is sent without the header, and one warning says so."""
    wire = Wire(lambda request: 204)
    client = wrap_httpx(wire.client(stack, kind, base_url=GATEWAY))
    with trace.use_span(BrokenSpan()):
        for _ in range(3):
            assert (await value_of(client.get("/v1"))).status_code == 204
    assert wire.sent() == [[]] * 3
    (warning,) = warnings_in(caplog)
    assert stack.__name__ in warning
    with mlflow.start_span("agent") as span:
        await value_of(client.get("/v1"))
    assert wire.sent()[-1] == [named_by(span)]
