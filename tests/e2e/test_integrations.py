"""Every agent of integrations/, run according to its README against a real gateway.

The README shows the expected result: the block that begins with ```` ```text ```` is the agent's trace. An agent that
needs another gateway has its own test, which contains the folder's name.
"""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow.entities import Span, Trace

from agent_gateway_client.demo._server import NOT_INHERITED
from agent_gateway_client.demo.gateway import DemoGateway
from tests.support.e2e import assert_linked, assert_mirror, children_of, mirrors_in, read_trace, tracing_into, wait_for
from tests.support.http_server import HttpServer
from tests.support.integrations import marks_of, python_of
from tests.support.matrix import assert_tokens_counted_once

ROOT = Path(__file__).parents[2]
FOLDERS = {path.parent.name: path.parent for path in ROOT.glob("integrations/*/README.md")}
RUN_ELSEWHERE = {
    "fastapi-gateway": "test_gateway_integrations.py",
    "flask-gateway": "test_gateway_integrations.py",
    "litellm-otel": "test_relay.py",
    "litellm-proxy": "test_gateway_integrations.py",
    "mlflow-gateway": "test_gateway_integrations.py",
    "opentelemetry-fastapi": "../relay/test_instrumented_gateway.py",
    "otel-collector": "test_many_gateways.py",
    "phoenix": "test_phoenix.py",
}
"""Folders whose agent needs another gateway or back end, and the tests that start it."""

NOT_RUN = {"agentgateway", "bifrost", "envoy-ai-gateway", "kong", "vllm"}
"""Guides for programs that do not run on this machine, written from their documentation. They must say so."""

HERE = sorted(set(FOLDERS) - set(RUN_ELSEWHERE) - NOT_RUN)

AGENT_DEADLINE_S = 300.0
VENDORS = ("OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_", "AZURE_")

each_agent = pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(FOLDERS[name])) for name in HERE])


class Ran(NamedTuple):
    """A completed run of an agent.

    Attributes:
        trace: Its trace.
        went_elsewhere: The other hosts to which it sent requests.
    """

    trace: Trace
    went_elsewhere: list[str]


@pytest.fixture(scope="module")
def ran(gateway: DemoGateway) -> dict[str, Ran]:
    """Runs of all agents, each made when it is first needed."""
    return Runs(gateway)


class Runs(dict[str, Ran]):
    def __init__(self, gateway: DemoGateway) -> None:
        super().__init__()
        self._gateway = gateway

    def __missing__(self, name: str) -> Ran:
        self._gateway.provider.clear()
        with HttpServer() as proxy:
            trace_id = run(name, self._gateway, proxy)
        answered = sum(request.method == "POST" for request in self._gateway.provider.requests)
        with tracing_into(self._gateway):
            self[name] = Ran(complete(trace_id, answered), [url for url, _ in proxy.requests])
        return self[name]


def run(name: str, gateway: DemoGateway, proxy: HttpServer) -> str:
    """Run a folder's agent like a user without other configuration; returns the id of its trace."""
    env = {key: value for key, value in os.environ.items() if not key.startswith((*NOT_INHERITED, *VENDORS))}
    address = proxy.gateway.removesuffix("/gateway")
    env |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), address)
    env |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
    env |= {"MLFLOW_TRACKING_URI": gateway.tracking_uri, "GATEWAY_URL": gateway.gateway_url}
    # LiteLLM and DSPy download a price list when they are imported.
    env |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    # CrewAI stores a key and its last run there.
    with tempfile.TemporaryDirectory() as home:
        ended = subprocess.run(
            [python_of(FOLDERS[name]), "agent.py"],
            cwd=FOLDERS[name],
            env={**env, "HOME": home},
            capture_output=True,
            text=True,
            timeout=AGENT_DEADLINE_S,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    return str(told["trace_id"])


def complete(trace_id: str, attempts: int) -> Trace:
    """Return a trace once it is complete: the agent's own spans, and a mirror of each request to the provider.

    Args:
        trace_id: The trace.
        attempts: The number of requests to the provider.
    """

    def is_complete() -> Trace | None:
        trace = read_trace(trace_id)
        if trace is None or trace.info.state == "IN_PROGRESS":
            return None
        # The agent first sends its spans; then the trace moves from the default experiment to the agent's.
        if "mlflow.trace_schema.version" not in trace.info.trace_metadata:
            return None
        if sum(span.name.startswith("provider/") for span in trace.data.spans) < attempts:
            return None
        # MLflow's client reads the trace's info, like its tokens, before it reads the spans.
        return read_trace(trace_id)

    return wait_for(f"the trace {trace_id} with {attempts} attempts", is_complete)


def tree_of(trace: Trace) -> str:
    """Draw a trace: one line per span in order of their start, with failures, and the tokens at the end."""
    ids = {span.span_id for span in trace.data.spans}
    roots = [span for span in trace.data.spans if span.parent_id not in ids]
    lines: list[str] = []

    def grow(spans: list[Span], depth: int) -> None:
        for span in spans:
            below = children_of(trace, span)
            usage = span.attributes.get("mlflow.chat.tokenUsage") or {}
            tokens = f"{usage['input_tokens']} + {usage.get('output_tokens', 0)} tokens" if usage and not below else ""
            failed = f"ERROR {span.attributes.get('error.type', '')}" if span.status.status_code == "ERROR" else ""
            lines.append("   ".join(filter(None, ("  " * depth + span.name, failed, tokens))).rstrip())
            grow(below, depth + 1)

    grow(roots, 0)
    return "\n".join(lines)


@each_agent
def test_the_trace_is_the_one_in_the_readme(name: str, ran: dict[str, Ran]):
    """The agent's spans, with every mirror below its caller, are those in the README."""
    (shown,) = re.findall(r"^```text\n(.*?)\n```$", (FOLDERS[name] / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert tree_of(ran[name].trace) == shown


@each_agent
def test_each_call_has_its_mirror_and_its_tokens_once(name: str, ran: dict[str, Ran], tracing: str):
    """Each mirror is within its caller's time and links to the gateway's own trace; the mirrors' tokens add up."""
    trace = ran[name].trace
    spans = {span.span_id: span for span in trace.data.spans}
    mirrors = mirrors_in(trace)
    assert mirrors
    for mirror in mirrors:
        assert mirror.parent_id is not None
        attempts = [
            (span.name.removeprefix("provider/"), span.status.status_code) for span in children_of(trace, mirror)
        ]
        assert_mirror(trace, mirror, spans[mirror.parent_id], attempts)
        assert attempts
        assert_linked(mirror)
    assert_tokens_counted_once(trace, mirrors)


@each_agent
def test_nothing_leaves_this_machine(name: str, ran: dict[str, Ran]):
    """The agent sends requests only to the gateway and MLflow: no framework sends telemetry."""
    assert ran[name].went_elsewhere == []


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_every_folder_is_run(name: str):
    """Each folder's agent is run here or by another test, and its README says what it needs."""
    if name in NOT_RUN:
        assert "## Not run here" in (FOLDERS[name] / "README.md").read_text()
        return
    if name in RUN_ELSEWHERE:
        assert name in (Path(__file__).parent / RUN_ELSEWHERE[name]).read_text()
    else:
        assert (FOLDERS[name] / "agent.py").is_file()
    assert (FOLDERS[name] / "requirements.txt").is_file()
    assert "Known to work with" in (FOLDERS[name] / "README.md").read_text()


def test_every_folder_has_a_readme():
    """Each folder is documented in its README and in the list of all."""
    folders = {path.name for path in ROOT.glob("integrations/*") if path.is_dir()}
    assert folders == set(FOLDERS)
    assert folders <= set(re.findall(r"\]\(([\w-]+)\)", (ROOT / "integrations" / "README.md").read_text()))
