"""Agents' traces are stored as without the companion, and each call of a stored trace is mirrored.

Agents of all kinds work concurrently, in two experiments, through two gateways that write to one MLflow server:
MLflow's own gateway and a FastAPI application, which sends its mirrors over HTTP.
"""

import json
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Trace
from mlflow.tracing.client import TracingClient
from mlflow.tracing.utils import aggregate_cost_from_spans, aggregate_usage_from_spans

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support import agents_at_work, warm_python
from tests.support.e2e import DEADLINE_S, mirrors_in, tracing_into, wait_for
from tests.support.nightly import NIGHTLY, amount

pytestmark = pytest.mark.e2e

RUNS = amount(2, 17)
"""Runs of each kind of agent in each program: some 200 in total at night."""

AT_ONCE = 4
"""Concurrent programs."""

EXPERIMENTS = ("first", "second")
PROGRAMS = [[kind] for kind in agents_at_work.KINDS for _ in EXPERIMENTS]
if not NIGHTLY:
    # A process takes seconds to import an agent's libraries.
    PROGRAMS = [["spans threads", "spans asyncio", "root alone"], ["autolog threads", "autolog asyncio"], ["killed"]]


@pytest.fixture(scope="module")
def done(
    gateway: DemoGateway, fastapi_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[dict[str, Any]]]:
    """The agents' log entries."""
    found = _run_agents(gateway, [gateway.openai_base_url, f"{fastapi_url}/v1"], tmp_path_factory.mktemp("agents"))
    with tracing_into(gateway):
        _wait_for_mirrors(found)
        yield found


def _run_agents(server: DemoGateway, urls: list[str], directory: Path) -> list[dict[str, Any]]:
    programs = []
    client = mlflow.MlflowClient(server.tracking_uri)
    for name in EXPERIMENTS:
        # If two programs create an experiment concurrently, MLflow puts the second trace into the default experiment.
        client.create_experiment(name)
    for number, kinds in enumerate(PROGRAMS):
        if number >= AT_ONCE:
            # MLflow's server has fifteen database connections.
            programs[number - AT_ONCE][1].wait(20 * DEADLINE_S)
        log = directory / f"{number}.jsonl"
        arguments = [",".join(kinds), str(RUNS), EXPERIMENTS[number % 2], server.tracking_uri, ",".join(urls), str(log)]
        command = [warm_python.interpreter(), "-m", agents_at_work.__name__, *arguments]
        with log.with_suffix(".log").open("wb") as output:
            program = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        programs.append((kinds, program, log))
    for kinds, program, log in programs:
        status = program.wait(20 * DEADLINE_S)
        said = log.with_suffix(".log").read_text()
        assert status == (-9 if kinds == ["killed"] else 0), said
    return [json.loads(line) for _, _, log in programs for line in log.read_text().splitlines()]


def _wait_for_mirrors(found: list[dict[str, Any]]) -> None:
    expected: dict[str, int] = defaultdict(int)
    for entry in found:
        expected[entry["trace_id"]] += entry["what"] == "call"

    def all_there() -> bool:
        for trace_id, count in list(expected.items()):
            trace = stored(trace_id)
            if trace is not None and len(mirrors_in(trace)) < count:
                return False
            del expected[trace_id]
        return True

    wait_for("all mirrors", all_there)


def stored(trace_id: str) -> Trace | None:
    traces = TracingClient().store.batch_get_traces([trace_id])
    return traces[0] if traces else None


def of_kinds(done: list[dict[str, Any]], what: str, *, killed: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the agents' log entries of one kind, by trace."""
    found = defaultdict(list)
    for entry in done:
        if entry["what"] == what and (entry["kind"] == "killed") is killed:
            found[entry["trace_id"]].append(entry)
    return found


def test_the_agents_own_traces_are_whole(done: list[dict[str, Any]]):
    """Each trace that an agent has ended is stored: in the agent's experiment, as OK, with all of the agent's spans."""
    ended, spans = of_kinds(done, "ended", killed=False), of_kinds(done, "span", killed=False)
    assert len(ended) == RUNS * sum(kind != "killed" for kinds in PROGRAMS for kind in kinds)
    for trace_id, (root,) in ended.items():
        trace = stored(trace_id)
        assert trace is not None, root
        assert (trace.info.experiment_id, trace.info.state) == (root["experiment_id"], "OK"), root
        own = {root["span_id"]} | {entry["span_id"] for entry in spans[trace_id]}
        assert own <= {span.span_id for span in trace.data.spans}, root
        assert trace.info.request_preview is not None or trace.info.execution_duration


@pytest.mark.skipif(not NIGHTLY, reason="a second server, and all agents once more: NIGHTLY=1")
def test_they_are_as_without_the_companion(
    done: list[dict[str, Any]], gateway: DemoGateway, tmp_path_factory: pytest.TempPathFactory
):
    """With plain MLflow the same agents leave the same traces: experiments, states and their own spans."""
    with DemoGateway(None, directory=tmp_path_factory.mktemp("plain")) as plain:
        plainly = _run_agents(plain, [plain.openai_base_url], tmp_path_factory.mktemp("plain-agents"))
        with tracing_into(plain):
            expected = _left_by(plainly)
    with tracing_into(gateway):
        assert _left_by(done) == expected


def _left_by(done: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    """Return for each trace that an agent ended: the agent's kind, the experiment, the state and the span names."""
    client = mlflow.MlflowClient()
    left: Counter[tuple[Any, ...]] = Counter()
    for trace_id, (root,) in of_kinds(done, "ended", killed=False).items():
        trace = stored(trace_id)
        assert trace is not None, root
        # MLflow's own mirrors are lost, except for a few.
        own = sorted(span.name for span in trace.data.spans if not span.name.startswith(("gateway/", "provider/")))
        where = client.get_experiment(trace.info.experiment_id).name
        left[(root["kind"], where, trace.info.state, *own)] += 1
    return left


def test_each_call_has_its_mirror(done: list[dict[str, Any]]):
    """Each answered call is mirrored once, below the span that made it; the SDK's retries are mirrored too."""
    for trace_id, calls in of_kinds(done, "call", killed=False).items():
        trace = stored(trace_id)
        assert trace is not None
        called = sorted(entry["span_id"] for entry in calls)
        assert sorted(_callers(trace, "OK")) == called, calls[0]["kind"]
        assert set(_callers(trace, "ERROR")) <= set(called)
        assert trace.info.experiment_id == calls[0]["experiment_id"]


def test_traces_of_agents_that_were_killed(done: list[dict[str, Any]]):
    """Their spans, if stored, are where the agent started the trace, with the mirrors of its calls."""
    begun, answered = of_kinds(done, "calling", killed=True), of_kinds(done, "call", killed=True)
    for trace_id, calls in begun.items():
        trace = stored(trace_id)
        if trace is not None:
            callers = Counter(_callers(trace, "OK"))
            # The last call may have been answered before its agent was killed.
            assert Counter(entry["span_id"] for entry in answered[trace_id]) <= callers
            assert callers <= Counter(entry["span_id"] for entry in calls)
            assert trace.info.experiment_id == calls[0]["experiment_id"]


def _callers(trace: Trace, status: str) -> list[str]:
    """Return the agents' spans above the mirrors; with autolog, skip the span of the client's own instrumentation."""
    spans = {span.span_id: span for span in trace.data.spans}
    callers = []
    for mirror in mirrors_in(trace):
        if mirror.status.status_code.value != status:
            continue
        caller = mirror.parent_id
        if caller in spans and spans[caller].name in ("Completions", "AsyncCompletions"):
            caller = spans[caller].parent_id
        callers.append(str(caller))
    return callers


def test_the_totals_are_right(done: list[dict[str, Any]]):
    """Each trace has the tokens and cost that MLflow computes from its spans; the tokens are the provider's."""
    calls = of_kinds(done, "call", killed=False)

    def wrong() -> list[Any]:
        return [entry for trace_id in list(calls) for entry in _wrong_totals(trace_id, calls[trace_id])]

    wait_for("totals", lambda: not wrong())
    assert wrong() == []


def _wrong_totals(trace_id: str, calls: list[dict[str, Any]]) -> list[Any]:
    trace = stored(trace_id)
    assert trace is not None
    tokens = aggregate_usage_from_spans(trace.data.spans)
    cost = aggregate_cost_from_spans(trace.data.spans)
    assert tokens is not None
    assert cost is not None
    found = []
    if trace.info.token_usage != tokens or tokens["total_tokens"] != sum(call["tokens"] for call in calls):
        found.append((calls[0]["kind"], trace_id, trace.info.token_usage, tokens))
    recorded = (trace.info.cost or {}).get("total_cost", 0)
    if abs(recorded - cost["total_cost"]) > 1e-9:
        found.append((calls[0]["kind"], trace_id, trace.info.cost, cost))
    return found


def test_nothing_is_stored_for_anybody_else(done: list[dict[str, Any]], gateway: DemoGateway):
    """No trace is stored except the agents' and the gateways' own."""
    agents = {entry["trace_id"] for entry in done}
    experiments = {entry["experiment_id"] for entry in done}
    client = mlflow.MlflowClient(gateway.tracking_uri)
    token = None
    while True:
        page = client.search_traces(locations=sorted(experiments), max_results=200, page_token=token)
        assert {trace.info.trace_id for trace in page} <= agents
        token = page.token
        if not token:
            return
