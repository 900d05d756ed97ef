"""Arize Phoenix as the store of all traces, as in integrations/phoenix: spans are sent over OTLP and read back."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_gateway_client.demo._server import NOT_INHERITED
from agent_gateway_client.demo.provider import Provider
from tests.support.backends import ROOT, FastapiGateway, Phoenix, in_backends, over_otlp
from tests.support.e2e import DEADLINE_S, wait_for

FOLDER = ROOT / "integrations" / "phoenix"
SPANS = 8
"""Three spans of the agent, a mirror for each of its two calls, and three attempts."""


pytestmark = pytest.mark.beside


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    with Phoenix(tmp_path_factory.mktemp("phoenix")) as phoenix:
        yield phoenix


def trace_of(phoenix: Phoenix, directory: Path, command: Sequence[object], spans: int, **gateway: str) -> Any:
    """Run an agent in the folder, in front of a gateway.

    Args:
        phoenix: The destination of the agent's and the gateway's spans.
        directory: The folder for the gateway's output.
        command: The command that runs the agent.
        spans: The number of spans in the trace.
        gateway: Additional environment variables of the gateway.

    Returns:
        The spans of the agent's trace, as Phoenix's API returns them.
    """
    with ExitStack() as running:
        provider = running.enter_context(Provider())
        environment = {**over_otlp(phoenix.url), **gateway}
        url = running.enter_context(FastapiGateway(directory, f"{provider.url}/v1", **environment)).url
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
        ran = subprocess.run(
            list(map(str, command)),
            cwd=FOLDER,
            env={
                **inherited,
                "OTEL_EXPORTER_OTLP_ENDPOINT": phoenix.url,
                "GATEWAY_URL": url,
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
        trace_id = ran.stdout.split()[-1]

        def complete() -> list[dict[str, Any]] | None:
            parameters = {"trace_id": trace_id, "limit": "100"}
            answer = httpx.get(f"{phoenix.url}/v1/projects/default/spans", params=parameters, timeout=DEADLINE_S)
            found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
            return found if len(found) >= spans else None

        found = wait_for("all spans", complete)
    assert len(found) == spans
    assert {span["context"]["trace_id"] for span in found} == {trace_id}
    return found


@pytest.fixture(scope="module")
def spans(phoenix: Phoenix, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The spans of the folder's agent by name."""
    found = trace_of(phoenix, tmp_path_factory.mktemp("gateway"), [sys.executable, "agent.py"], SPANS)
    # Two attempts have the same model, and thus the same name; the mirror above distinguishes them.
    names = {span["context"]["span_id"]: span["name"] for span in found}
    return {f"{names.get(span['parent_id'], '')} > {span['name']}": span for span in found}


MIRRORS = {
    "ask > gateway/chat": "chat",
    "ask for a stream > gateway/fallback": "fallback",
}
ANSWERED = ["gateway/chat > chat gpt-4o-mini", "gateway/fallback > chat gpt-4o-mini"]
FAILED = "gateway/fallback > chat gpt-4o-fail-503"


def test_one_trace(spans: dict[str, dict[str, Any]]):
    """The trace has one tree, with only the agent's own spans and the mirrors."""
    own = {" > agent", "agent > ask", "agent > ask for a stream"}
    assert set(spans) == own | set(MIRRORS) | set(ANSWERED) | {FAILED}
    assert len(spans) == SPANS


@pytest.mark.parametrize("name", MIRRORS)
def test_a_mirror(name: str, spans: dict[str, dict[str, Any]]):
    """The gateway's span has the conventional attributes of a call and the status OK."""
    span = spans[name]
    facts = span["attributes"]
    assert span["status_code"] == "OK"
    assert facts["agent_gateway.endpoint.name"] == MIRRORS[name]
    assert span["span_kind"] != "LLM"
    assert facts["gen_ai.request.stream"] is (MIRRORS[name] == "fallback")
    assert facts["server.address"] == "127.0.0.1"
    assert facts["http.response.status_code"] == 200


@pytest.mark.parametrize("name", ANSWERED)
def test_an_attempt(name: str, spans: dict[str, dict[str, Any]]):
    """A successful attempt has provider, model, tokens and finish reason under their conventional names."""
    facts = spans[name]["attributes"]
    assert spans[name]["status_code"] == "OK"
    assert spans[name]["span_kind"] == "LLM"
    assert (facts["gen_ai.provider.name"], facts["gen_ai.request.model"]) == ("openai", "gpt-4o-mini")
    assert facts["gen_ai.response.model"] == "gpt-4o-mini"
    assert facts["gen_ai.usage.input_tokens"] > 0
    assert facts["gen_ai.usage.output_tokens"] > 0
    assert facts["gen_ai.response.finish_reasons"] == ["stop"]


def test_a_failed_attempt(spans: dict[str, dict[str, Any]]):
    """A failed attempt is a failed span with an error type."""
    span = spans[FAILED]
    assert span["status_code"] == "ERROR"
    assert span["status_message"] == ""
    assert span["attributes"]["error.type"] == "503"


WITH_OPENINFERENCE = """
import runpy
from openinference.instrumentation.openai import OpenAIInstrumentor
OpenAIInstrumentor().instrument()
runpy.run_path("agent.py", run_name="__main__")
"""


def tokens_of(spans: list[dict[str, Any]]) -> int:
    """Return the tokens that the spans of a trace report, under OpenInference's names and OpenTelemetry's."""
    return sum(
        span["attributes"].get("llm.token_count.total")
        or span["attributes"].get("gen_ai.usage.input_tokens", 0)
        + span["attributes"].get("gen_ai.usage.output_tokens", 0)
        for span in spans
    )


def test_tokens_count_once(phoenix: Phoenix, tmp_path: Path, spans: dict[str, dict[str, Any]]):
    """Where OpenInference reports the agent's tokens, mirrors leave theirs out with AGENT_GATEWAY_USAGE=false."""
    command = [in_backends("python"), "-c", WITH_OPENINFERENCE]
    totals = {}
    for usage in ("true", "false"):
        directory = tmp_path / usage
        directory.mkdir()
        # OpenInference adds a span to each of the agent's calls.
        totals[usage] = tokens_of(trace_of(phoenix, directory, command, SPANS + 2, AGENT_GATEWAY_USAGE=usage))
    once = tokens_of(list(spans.values()))
    assert once > 0
    assert totals == {"true": 2 * once, "false": once}
