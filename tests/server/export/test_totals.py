"""The totals of traces: read from MLflow's tables they are what MLflow's public methods give."""

import json
from collections.abc import Iterator
from typing import Any

import mlflow
import pytest
from mlflow.entities import Span, SpanEvent
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from agent_gateway_client.server.export import mlflow_columns
from agent_gateway_client.server.export.mlflow_store import SqlStore
from agent_gateway_client.server.export.totals import COST, USAGE
from agent_gateway_client.server.mirror import Convention, mirror
from agent_gateway_client.w3c import TraceContext
from tests.support.mlflow_database import database_in
from tests.support.server import full_call

TOKENS = {"input_tokens": 10, "output_tokens": 3, "total_tokens": 13}
CACHED = {**TOKENS, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2}
PRICE = {"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlAlchemyStore]:
    uri = database_in(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("agents")
        store = SqlAlchemyStore(uri, "mlflow-artifacts:/")
        yield store
    store.engine.dispose()
    mlflow.tracing.reset()
    mlflow.set_tracking_uri(None)


def leaves(*attributes: dict[str, Any]) -> str:
    """Trace an agent with a step for each set of attributes; returns the trace's id."""
    with mlflow.start_span("agent") as agent:
        for each in attributes:
            with mlflow.start_span("step", attributes=each) as step:
                step.set_inputs({"prompt": "x" * 10_000})
    return str(agent.trace_id)


def nested() -> str:
    """Trace a step that reports what the step below it reports as well."""
    with (
        mlflow.start_span("agent") as agent,
        mlflow.start_span("outer", attributes={"mlflow.chat.tokenUsage": TOKENS}),
        mlflow.start_span("inner", attributes={"mlflow.chat.tokenUsage": TOKENS, "mlflow.llm.cost": PRICE}),
    ):
        pass
    return str(agent.trace_id)


def event() -> str:
    """Trace a step with an event, and then an attribute, of the same name."""
    with mlflow.start_span("agent") as agent, mlflow.start_span("step") as step:
        step.add_event(SpanEvent("usage", attributes={"mlflow.chat.tokenUsage": "{}"}))
        step.set_attribute("mlflow.chat.tokenUsage", TOKENS)
    return str(agent.trace_id)


TRACES = {
    "no usage": lambda: leaves({}, {"mine": 1}),
    "tokens": lambda: leaves({"mlflow.chat.tokenUsage": TOKENS}, {}),
    "cached tokens and cost": lambda: leaves({"mlflow.chat.tokenUsage": CACHED, "mlflow.llm.cost": PRICE}),
    "several": lambda: leaves(*[{"mlflow.chat.tokenUsage": TOKENS, "mlflow.llm.cost": PRICE}] * 3),
    "one below the other": nested,
    "names in a prompt": lambda: leaves({"prompt": '"mlflow.chat.tokenUsage": "{}"'}),
    "names in an event": event,
}


def both_ways(store: SqlAlchemyStore, *trace_ids: str) -> tuple[Any, Any]:
    """Return the totals as read from the tables, and by MLflow's public methods."""
    by_columns, by_methods = SqlStore(lambda: store), SqlStore(lambda: store)
    by_methods._knows_columns = False
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    found = by_columns.totals_of(trace_ids, experiments, {})
    assert by_columns._knows_columns, "the tables of this version of MLflow are known"
    return found, by_methods.totals_of(trace_ids, experiments, {})


REPORTS: dict[str, tuple[int | None, float | None]] = {
    "no usage": (None, None),
    "tokens": (13, None),
    "cached tokens and cost": (13, 0.3),
    "several": (39, 0.9),
    "one below the other": (13, 0.3),
    "names in a prompt": (None, None),
    "names in an event": (13, None),
}
"""The tokens and the cost of each of the traces."""


@pytest.mark.parametrize("kind", TRACES)
def test_both_ways_give_the_same(kind: str, store: SqlAlchemyStore):
    """The totals that are recorded, and those that are missing, whatever the spans report."""
    trace_id = TRACES[kind]()
    found, expected = both_ways(store, trace_id, "tr-unknown")
    assert found == expected
    assert list(found) == [trace_id]
    assert found[trace_id].missing == {}
    nothing = {USAGE: dict.fromkeys(TOKENS, 0), COST: dict.fromkeys(PRICE, 0.0)}
    SqlStore(lambda: store).set_metadata(trace_id, {name: json.dumps(total) for name, total in nothing.items()})
    found, expected = both_ways(store, trace_id)
    assert found == expected
    missing = found[trace_id].missing
    tokens, cost = REPORTS[kind]
    assert missing.get(USAGE, {}).get("total_tokens") == tokens
    assert missing.get(COST, {}).get("total_cost") == (cost and pytest.approx(cost))


@pytest.mark.parametrize("name", [USAGE, COST])
def test_what_is_missing(name: str, store: SqlAlchemyStore):
    """Spans that come after a trace has ended are in the sums, and not in what is recorded."""
    trace_id = leaves({"mlflow.chat.tokenUsage": TOKENS, "mlflow.llm.cost": PRICE})
    call = full_call(parent=TraceContext(int(trace_id.removeprefix("tr-"), 16), 7, 1))
    late = [Span(span) for span in mirror(call, Convention.MLFLOW)]
    store.log_spans(store.get_experiment_by_name("agents").experiment_id, late)
    found, expected = both_ways(store, trace_id)
    assert found == expected
    total = found[trace_id].missing[name]
    assert total[{USAGE: "total_tokens", COST: "total_cost"}[name]] == pytest.approx({USAGE: 28, COST: 0.6}[name])
    metadata = {name: json.dumps(total) for name, total in found[trace_id].missing.items()}
    SqlStore(lambda: store).set_metadata(trace_id, metadata)
    found, expected = both_ways(store, trace_id)
    assert found == expected
    assert found[trace_id].missing == {}


def test_a_trace_that_has_not_ended(store: SqlAlchemyStore):
    """It has no totals yet."""
    with mlflow.start_span("agent") as agent:
        assert both_ways(store, agent.trace_id) == ({}, {})


def test_only_what_reports_is_read(store: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch):
    """The payload of spans without usage stays in the database."""
    trace_id = leaves({}, {"mlflow.chat.tokenUsage": TOKENS}, {})
    read: list[str] = []
    reported = mlflow_columns._reported
    monkeypatch.setattr(mlflow_columns, "_reported", lambda text, name: read.append(text) or reported(text, name))
    mlflow_columns.totals_of(store, [trace_id], {})
    assert len(set(read)) == 1


def test_what_has_not_changed_is_not_read_again(store: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch):
    """A second look reads the spans of the traces with new spans or other totals, and only theirs."""
    same, grown, corrected = (leaves({"mlflow.chat.tokenUsage": TOKENS}) for _ in range(3))
    traces = (same, grown, corrected)
    first = mlflow_columns.totals_of(store, traces, {})
    call = full_call(parent=TraceContext(int(grown.removeprefix("tr-"), 16), 7, 1))
    late = [Span(span) for span in mirror(call, Convention.MLFLOW)]
    store.log_spans(store.get_experiment_by_name("agents").experiment_id, late)
    SqlStore(lambda: store).set_metadata(corrected, {USAGE: json.dumps({**TOKENS, "total_tokens": 99})})
    read: list[str] = []
    most = mlflow_columns._most
    monkeypatch.setattr(mlflow_columns, "_most", lambda session, ids: read.extend(ids) or most(session, ids))
    second = mlflow_columns.totals_of(store, traces, first)
    assert sorted(read) == sorted([grown, corrected])
    assert second[same] == first[same]
    assert second == mlflow_columns.totals_of(store, traces, {})
    assert (first[grown].spans, second[grown].spans) == (2, 2 + len(late))


@pytest.mark.parametrize("report", ["many", [13], 13], ids=str)
def test_a_report_that_cannot_be_added_up(report: Any, store: SqlAlchemyStore, logged: pytest.LogCaptureFixture):
    """MLflow records no totals of such a trace. Those of the others are found, and one warning is logged."""
    odd, good = leaves({"mlflow.chat.tokenUsage": report}), leaves({"mlflow.chat.tokenUsage": TOKENS})
    nothing = {USAGE: json.dumps(dict.fromkeys(TOKENS, 0))}
    SqlStore(lambda: store).set_metadata(good, nothing)
    for found in both_ways(store, odd, good):
        assert found[odd].missing == {}
        assert found[good].missing[USAGE]["total_tokens"] == 13
    assert logged.text.count("Could not complete the totals of a trace") == 1


def test_metadata_that_is_no_total(store: SqlAlchemyStore):
    """MLflow 3.15 keeps totals as metadata, which a caller can set. An invalid value is replaced by the sum."""
    if hasattr(mlflow_columns.models.SqlTraceInfo, "total_tokens"):
        pytest.skip("this MLflow keeps totals in columns")
    odd, good = (leaves({"mlflow.chat.tokenUsage": TOKENS}) for _ in range(2))
    for text in ("many", "[13]", json.dumps({"total_tokens": "13"})):
        SqlStore(lambda: store).set_metadata(odd, {USAGE: text})
        found = mlflow_columns.totals_of(store, [odd, good], {})
        assert found[odd].missing[USAGE]["total_tokens"] == 13
        assert found[good].missing == {}


def test_reports_of_which_one_cannot_be_added_up(store: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch):
    """When totals are read from the tables, an error in one trace does not affect the others."""
    odd, good = (leaves({"mlflow.chat.tokenUsage": TOKENS}) for _ in range(2))
    for trace_id in (odd, good):
        SqlStore(lambda: store).set_metadata(trace_id, {USAGE: json.dumps(dict.fromkeys(TOKENS, 0))})
    missing, calls = mlflow_columns._missing, []

    def failing(spans: Any, recorded: Any) -> Any:
        calls.append(spans)
        if len(calls) == 1:
            raise TypeError("unsupported operand")
        return missing(spans, recorded)

    monkeypatch.setattr(mlflow_columns, "_missing", failing)
    found = mlflow_columns.totals_of(store, [odd, good], {})
    assert sorted(len(one.missing) for one in found.values()) == [0, 1]


def stored(report: Any, *, event: Any = None) -> str:
    """Return a span's content in MLflow's table."""
    name = "mlflow.chat.tokenUsage"
    events = [] if event is None else [{"name": "usage", "attributes": {name: event}}]
    return json.dumps({"events": events, "attributes": {"prompt": "}", name: report, "answer": json.dumps("}")}})


FORMS: dict[str, tuple[str, float]] = {
    "spaces": (stored(json.dumps(TOKENS)), 13),
    "no spaces": (stored(json.dumps(TOKENS, separators=(",", ":"))), 13),
    "more spaces": (stored(json.dumps(TOKENS, separators=(" , ", " : "))), 13),
    "lines": (stored(json.dumps(TOKENS, indent=2)), 13),
    "the total first": (stored(json.dumps(dict(reversed(TOKENS.items())))), 13),
    "no total": (stored(json.dumps({"input_tokens": 10})), 0),
    "unknown total": (stored(json.dumps({**TOKENS, "total_tokens": None})), 0),
    "details": (stored(json.dumps({"details": {"cached": {}}, **TOKENS})), 13),
    "a total in details": (stored(json.dumps({"details": {"total_tokens": 4}, **TOKENS})), 13),
    "a total in details, last": (stored(json.dumps({**TOKENS, "details": {"total_tokens": 4}})), 13),
    "a total in details only": (stored(json.dumps({"details": {"total_tokens": 4}})), 0),
    "nothing": (stored("{}"), 0),
    "a list": (stored("[13]"), 0),
    "no text": (stored(TOKENS), 13),
    "exponent": (stored('{"total_tokens": 1.3e+1}'), 13),
    "a text": (stored('{"total_tokens": "13"}'), 0),
    "no number": (stored('{"total_tokens": 1-2}'), 0),
    "no JSON": (stored('{"total_tokens": 13'), 0),
    "another total in an event": (stored(json.dumps(TOKENS), event=json.dumps({"total_tokens": 99})), 13),
    "none, and another attribute": (json.dumps({"attributes": {"mine": json.dumps(TOKENS)}}), 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_stored_report(form: str):
    """Its total is found in whatever form the attribute was written."""
    text, total = FORMS[form]
    assert mlflow_columns._reported(text, USAGE) == total
    assert mlflow_columns._reported(text, COST) == 0
