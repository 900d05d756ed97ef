"""`agent-gateway trace` and `show_trace()`, on a trace that a real gateway has joined."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner, Result

from agent_gateway_client import show_trace
from agent_gateway_client.cli.app import app
from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.errors import ConfigurationError, NotFoundError
from tests.support.e2e import USER, linked, mirrored, mirrors_in, openai_client

MESSAGES: Any = [USER]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["trace", *arguments])


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """The command sets these for its process, which is the test's here, unless they are set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        yield


@pytest.fixture(scope="module")
def trace_id(gateway: DemoGateway, tracing: str) -> str:
    """A trace with a call that first asked a failing model."""
    with openai_client(gateway) as client, mlflow.start_span("agent") as agent:
        client.chat.completions.create(model="fallback", messages=MESSAGES)
    (mirror,) = mirrors_in(mirrored(agent))
    linked(mirror)
    return str(agent.trace_id)


def names(spans: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(span["depth"], span["name"]) for span in spans]


def test_the_tree(gateway: DemoGateway, trace_id: str):
    """The joined tree, with the gateway's own trace below its link. W3C's form of the id is accepted too."""
    told = run(trace_id.removeprefix("tr-"), "--tracking-uri", gateway.tracking_uri)
    assert told.exit_code == 0, told.output
    lines = [line.strip("│├└─ ") for line in told.output.splitlines()]
    found = [line.split("  ")[0] for line in lines]
    assert found[:-2] == [
        f"trace {trace_id}",
        "agent",
        "gateway/fallback",
        "provider/openai/gpt-4o-fail-503",
        "provider/openai/gpt-4o-mini",
        "the gateway's own trace",
        "gateway/fallback",
        "provider/openai/gpt-4o-fail-503",
        "provider/openai/gpt-4o-mini",
    ]
    assert "ERROR 503" in lines[3]
    assert "tokens  $0." in lines[4]
    assert lines[-2].startswith("Where the time went: ")
    assert f"{gateway.tracking_uri}/#/experiments/" in lines[-1]


def test_json_and_the_last_trace(gateway: DemoGateway, trace_id: str, tracing: str):
    """The gateway's own trace is newer than the agent's, but is not used as the last one."""
    told = run("--last", "--experiment", "agents", "--json", "--tracking-uri", gateway.tracking_uri)
    report = json.loads(told.stdout)
    assert (told.exit_code, report["trace_id"], report["experiment_id"]) == (0, trace_id, tracing)
    assert report == json.loads(run("--last", "--json", "--tracking-uri", gateway.tracking_uri).stdout)
    assert names(report["spans"]) == [
        (0, "agent"),
        (1, "gateway/fallback"),
        (2, "provider/openai/gpt-4o-fail-503"),
        (2, "provider/openai/gpt-4o-mini"),
    ]
    gateway_span = report["spans"][1]
    assert (gateway_span["kind"], gateway_span["status"]) == ("gateway", "OK")
    own = report["linked"][gateway_span["linked_trace_id"]]
    assert names(own)[0] == (0, "gateway/fallback")
    assert report["spans"][3]["usage"]["total_tokens"] == report["tokens"]["total_tokens"] > 0
    assert report["spans"][3]["cost"] == report["cost"] > 0
    began, ended = min(span["start_ns"] for span in report["spans"]), max(span["end_ns"] for span in report["spans"])
    assert sum(report["time_ms"].values()) == pytest.approx((ended - began) / 1e6)
    assert report["time_ms"]["provider"] > 0


def test_the_page_and_the_notebook(gateway: DemoGateway, trace_id: str, tmp_path: Path):
    """The same waterfall, without prompts and answers; by default of this process's last trace."""
    path = tmp_path / "trace.html"
    told = run(trace_id, "--html", str(path), "--tracking-uri", gateway.tracking_uri)
    assert told.exit_code == 0, told.output
    assert str(path) in told.output
    drawn = show_trace()
    assert drawn._repr_html_() in path.read_text(encoding="utf-8")
    assert drawn.joined.trace_id == trace_id
    assert len(mirrors_in(drawn.joined.trace)) == 1
    assert "one two three" not in path.read_text(encoding="utf-8")


def test_a_notebook_shows_a_mirror_that_is_still_on_its_way(gateway: DemoGateway, tracing: str):
    """It waits by itself: the gateway's spans arrive shortly after the agent's own."""
    with openai_client(gateway) as client, mlflow.start_span("agent"):
        client.chat.completions.create(model="chat", messages=MESSAGES)
    drawn = show_trace()
    assert [span.kind for span in drawn.joined.spans] == ["own", "gateway", "attempt"]
    assert len(drawn.joined.linked) == 1


def test_a_trace_that_is_not_there(gateway: DemoGateway, tracing: str):
    """The error says where it was searched."""
    for unknown in ("tr-" + "0" * 32, "anything"):
        told = run(unknown, "--tracking-uri", gateway.tracking_uri)
        assert isinstance(told.exception, NotFoundError)
        assert f"{gateway.tracking_uri} has no trace {unknown}" in str(told.exception)
    told = run("--last", "--experiment", "nobody's", "--tracking-uri", gateway.tracking_uri)
    assert 'has no experiment "nobody\'s"' in str(told.exception)


def test_a_server_that_is_not_there(tracing: str):
    """The error comes within seconds, not after MLflow's timeouts."""
    told = run("--last", "--tracking-uri", "http://127.0.0.1:9")
    assert isinstance(told.exception, NotFoundError)
    assert "MLflow at http://127.0.0.1:9 failed to answer" in str(told.exception)


def test_an_empty_experiment(gateway: DemoGateway, tracing: str):
    mlflow.create_experiment("empty")
    told = run("--last", "--experiment", "empty", "--tracking-uri", gateway.tracking_uri)
    assert "has no trace of an agent" in str(told.exception)


def test_what_to_show_has_to_be_said(trace_id: str):
    """Exactly one of the two is required."""
    for arguments in ([], [trace_id, "--last"]):
        told = run(*arguments)
        assert told.exit_code == 2
        assert "Give either a TRACE_ID or --last." in told.output


def test_a_process_without_a_trace(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlflow, "get_last_active_trace_id", lambda: None)
    with pytest.raises(ConfigurationError, match="has made no trace yet"):
        show_trace()
