"""mlflow_gateway without a server: the requests it mirrors, the headers it removes, and how it is started."""

import os
import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest

from agent_gateway_client.errors import ConfigurationError
from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.mlflow_gateway import MlflowGateway, create_app
from tests.support.asgi import TRACED, Client, Mirrors, answering, body, http_scope, start
from tests.support.server import PARENT

CALLERS = [*TRACED, (b"TraceState", b"a=1"), (b"baggage", b"user=1")]
OTHERS = [(b"host", b"gw"), (b"x-kept", b"1"), (b"x-kept", b"2"), (b"x-trace", b"3")]


class Application:
    """An application that records the scopes it is called with."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await answering(start(), body())(scope, receive, send)


async def serve(mirrors: Mirrors, scope: dict[str, Any]) -> Any:
    """Serve one request; returns the scope for MLflow."""
    application, client = Application(), Client()
    await MlflowGateway(application, mirrors.exporter)(scope, client.receive, client.send)
    (seen,) = application.scopes
    return seen


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/2.0/mlflow/runs/create"),
        ("POST", "/v1/traces"),
        ("POST", "/gateway"),
        ("POST", "/gatewayed/openai/v1/chat/completions"),
        ("POST", "/other/gateway/openai/v1/chat/completions"),
        ("GET", "/gateway/mlflow/v1/models"),
        ("GET", "/"),
    ],
)
async def test_what_is_no_call_of_the_gateway_is_left_alone(method: str, path: str, mirrors: Mirrors):
    """MLflow's UI and API, which has its own trace context, get the server's own scope, and are not mirrored."""
    scope = http_scope(CALLERS, method=method, path=path)
    assert await serve(mirrors, scope) is scope
    assert mirrors.spans == []


@pytest.mark.parametrize(
    ("status", "state", "refused"),
    [
        (401, {}, True),
        (403, {}, True),
        (404, {}, False),
        (422, {}, False),
        (429, {}, False),
        (400, {"endpoint_id": "e-1"}, False),
        (403, {"endpoint_id": "e-1"}, False),
    ],
)
def test_what_mlflow_refuses(status: int, state: dict[str, Any], refused: bool, mirrors: Mirrors):
    """Only 401 and 403 before an endpoint was chosen mean that MLflow has rejected the caller.

    An exhausted budget (429), a guardrail (400) and a provider's 403 come later, and are mirrored.
    """
    call = GatewayCall(PARENT, http_status=status)
    assert MlflowGateway(Application(), mirrors.exporter).is_refused(call, {"state": state}) is refused


@pytest.mark.parametrize("traced", [True, False])
async def test_the_callers_context_is_taken_off(traced: bool, mirrors: Mirrors):
    """MLflow gets no traceparent, tracestate or baggage, valid or not, and all other headers in their order."""
    headers = [*OTHERS[:2], *(CALLERS if traced else [(b"traceparent", b"no"), *CALLERS[1:]]), *OTHERS[2:]]
    scope = http_scope(headers, path="/gateway/openai/v1/chat/completions")
    seen = await serve(mirrors, scope)
    assert seen["headers"] == OTHERS
    assert scope["headers"] == headers, "the server's own scope stays as it is"
    assert len(mirrors.spans) >= traced
    assert bool(mirrors.spans) is traced


@pytest.mark.parametrize(
    ("path", "request_type"),
    [
        ("/mlflow/v1/chat/completions", "unified/chat"),
        ("/my-endpoint/mlflow/invocations", "unified/invocations"),
        ("/openai/v1/chat/completions", "passthrough/model/openai-chat"),
        ("/openai/v1/embeddings", "passthrough/model/openai-embeddings"),
        ("/openai/v1/responses", "passthrough/model/openai-responses"),
        ("/openai/v1/responses/compact", "passthrough/model/openai-responses"),
        ("/anthropic/v1/messages", "passthrough/model/anthropic-messages"),
        ("/gemini/v1beta/models/e:generateContent", "passthrough/model/gemini-generateContent"),
        ("/gemini/v1beta/models/e:streamGenerateContent", "passthrough/model/gemini-generateContent"),
        ("/proxy/e/v1/anything", "proxy/raw"),
        ("/a/route/of/tomorrow", None),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/mlflow"])
async def test_routes_have_mlflows_names(
    path: str, request_type: str | None, prefix: str, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch
):
    """Every call below the gateway's path, with --static-prefix too, is mirrored with MLflow's name of its route."""
    monkeypatch.setenv("_MLFLOW_STATIC_PREFIX", prefix)
    await serve(mirrors, http_scope(path=f"{prefix}/gateway{path}"))
    assert mirrors.only.get("mlflow.gateway.requestType") == request_type


@pytest.mark.parametrize("server", ["gunicorn", "waitress"])
def test_only_uvicorn_will_do(server: str, monkeypatch: pytest.MonkeyPatch):
    """Under a WSGI server, which has no gateway, the start fails with one error that names the option to remove."""
    monkeypatch.setenv("_MLFLOW_SGI_NAME", server)
    with pytest.raises(ConfigurationError, match=f"without --{server}-opts"):
        create_app()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AGENT_GATEWAY_MLFLOW_APP": "agent-gateway"}, "AGENT_GATEWAY_MLFLOW_APP is 'agent-gateway'"),
        ({"AGENT_GATEWAY_WAIT_SECONDS": "an hour"}, "AGENT_GATEWAY_WAIT_SECONDS is 'an hour'"),
    ],
)
def test_a_value_that_cannot_work_fails_the_import(variables: dict[str, str], said: str):
    """MLflow imports the module once before it starts its workers; a bad value raises one error there."""
    done = subprocess.run(
        [sys.executable, "-c", "import agent_gateway_client.server.mlflow_gateway"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("agent_gateway_client.errors.ConfigurationError: ")
    assert said in last


async def test_an_mlflow_without_its_tracer_provider(
    mirrors: Mirrors, guards_hold: None, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
):
    """Calls are served and mirrored without attempts; one warning has the version."""
    monkeypatch.delattr("mlflow.tracing.get_bridged_tracer_provider")
    for _ in range(2):
        await serve(mirrors, http_scope(TRACED, path="/gateway/openai/v1/chat/completions"))
        assert mirrors.spans
    (warning,) = logged.messages
    assert "Could not observe the spans of MLflow's gateway" in warning
    assert f"mlflow {metadata.version('mlflow')}" in warning
