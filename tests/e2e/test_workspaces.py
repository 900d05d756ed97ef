"""MLflow with workspaces: a mirror goes to the request's workspace, and traces of other workspaces are not found."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import pytest
from mlflow.entities import Trace

from agent_gateway_client.demo._endpoints import Endpoints
from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.doctor.checks import Settings
from agent_gateway_client.doctor.examine import examine
from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.export import sender
from agent_gateway_client.server.export.environment import exporter_from_environment
from agent_gateway_client.w3c import TraceContext
from tests.support.e2e import CHAT, learn_server_version, mirrored, openai_client

pytestmark = pytest.mark.e2e

TEAM = "team-b"
HEADER = "X-MLFLOW-WORKSPACE"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoGateway]:
    """A gateway that runs with ``--enable-workspaces``, with the endpoint ``chat`` in two workspaces."""
    directory = tmp_path_factory.mktemp("workspaces")
    environment = {"MLFLOW_SERVER_ALLOWED_HOSTS": "*"}
    with DemoGateway(directory=directory, env=environment, options=["--enable-workspaces"]) as gateway:
        mlflow.set_tracking_uri(gateway.tracking_uri)
        learn_server_version()
        mlflow.create_workspace(TEAM)
        with workspace(TEAM):
            Endpoints(gateway.tracking_uri, gateway.provider.url).create("chat", ["gpt-4o-mini"], "openai", True)
        yield gateway


@contextmanager
def workspace(name: str) -> Iterator[None]:
    """Let this process's MLflow client use a workspace."""
    mlflow.set_workspace(name)
    try:
        yield
    finally:
        # Not "default", which servers of other tests without workspaces reject.
        mlflow.set_workspace(None)


@contextmanager
def agent_in(name: str) -> Iterator[str]:
    """Trace into an experiment of a workspace; yields its id."""
    with workspace(name):
        mlflow.tracing.reset()
        yield str(mlflow.set_experiment(f"agents of {name}").experiment_id)
    mlflow.tracing.reset()


def ask(gateway: DemoGateway, in_workspace: str | None) -> mlflow.entities.Span:
    """Ask an endpoint of a workspace from inside an agent's span; returns the span."""
    headers = {HEADER: in_workspace} if in_workspace else {}
    with openai_client(gateway, default_headers=headers) as client, mlflow.start_span("agent") as agent:
        client.chat.completions.create(model="chat", **CHAT)
    return agent


@pytest.mark.parametrize(("name", "asked"), [("default", None), ("default", "default"), (TEAM, TEAM)])
def test_a_mirror_goes_to_the_workspace_of_the_request(name: str, asked: str | None, gateway: DemoGateway):
    """The agent's trace, the request and the mirror are in one workspace and in the agent's experiment."""
    with agent_in(name) as experiment_id:
        trace: Trace = mirrored(ask(gateway, asked))
        assert trace.info.experiment_id == experiment_id


@pytest.mark.parametrize("name", ["default", TEAM])
def test_over_http(name: str, gateway: DemoGateway, monkeypatch: pytest.MonkeyPatch):
    """A gateway other than MLflow's sends its mirrors to the workspace in MLFLOW_WORKSPACE."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gateway.tracking_uri)
    with agent_in(name) as experiment_id:
        exporter = exporter_from_environment()
        with mlflow.start_span("agent") as agent:
            context = TraceContext(int(agent.trace_id.removeprefix("tr-"), 16), int(agent.span_id, 16), 1)
            call = GatewayCall(context, endpoint="over HTTP")
            call.end()
            exporter.submit(call)
        trace: Trace = mirrored(agent)
        assert trace.info.experiment_id == experiment_id
        assert exporter.flush()


def test_a_trace_in_another_workspace(
    gateway: DemoGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A trace in another workspace gets no mirror, and the log has the reason."""
    monkeypatch.setattr(sender, "_OTHER_WORKSPACES_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gateway.tracking_uri)
    with agent_in(TEAM):
        agent = ask(gateway, TEAM)
        mirrored(agent)
    with workspace("default"):
        exporter = exporter_from_environment()
        call = GatewayCall(TraceContext(int(agent.trace_id.removeprefix("tr-"), 16), 7, 1), workspace="default")
        call.end()
        exporter.submit(call)
        assert exporter.flush(60)
    assert exporter.counts().dropped == {"other_workspace": 1}
    assert re.search("another MLflow workspace than the gateway", caplog.text)


def test_the_doctor_names_the_workspace(gateway: DemoGateway):
    """If the agent traces into another workspace than the gateway's, the doctor reports it."""
    with workspace(TEAM):
        settings = Settings(gateway.gateway_url, "chat", gateway.tracking_uri, patience_s=10)
        last = examine(settings)[-1]
    mlflow.tracing.reset()
    assert (last.name, last.ok) == ("mirror", False)
    assert f"workspace {TEAM!r}" in last.detail
    assert f"X-MLFLOW-WORKSPACE: {TEAM}" in last.fix
