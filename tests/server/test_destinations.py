"""destinations.py: the environment variables, and MLflow as the place that spans are sent to."""

import logging
import re
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
    UNAUTHENTICATED,
)
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.store.tracking.file_store import FileStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from server_support import DEADLINE_S, full_call, plain_attempt, plain_call

from agent_gateway_client._install import install_command
from agent_gateway_client.errors import ConfigurationError, MissingDependencyError
from agent_gateway_client.propagation import TraceContext, current_trace_context
from agent_gateway_client.server.call import new_span_id
from agent_gateway_client.server.destinations import (
    MlflowDestination,
    OtlpDestination,
    destination_from_environment,
    experiment_id_from_environment,
)
from agent_gateway_client.server.export import Destination, Exporter, Rejected
from agent_gateway_client.server.mirror import Convention, mirror


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine's user says where spans go."""
    for name in ("AGENT_GATEWAY_EXPORTER", "AGENT_GATEWAY_EXPERIMENT_ID", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite database with MLflow's tables."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def caller(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Trace into an experiment of the caller's own in the database; gives its id."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    mlflow.set_tracking_uri(store_uri)
    experiment = mlflow.set_experiment("caller")
    yield str(experiment.experiment_id)
    mlflow.tracing.reset()
    mlflow.set_tracking_uri(None)
    logger.setLevel(level)


def taker() -> Destination:
    """Return the destination that takes the place of MLflow's."""
    return MlflowDestination(lambda experiment, spans: None, "0")


@pytest.mark.parametrize("value", [None, "", "mlflow"])
def test_mlflow_is_the_default(value: str | None, monkeypatch: pytest.MonkeyPatch):
    """Without a choice, and with the choice of MLflow, the given maker of MLflow's destination is used."""
    if value is not None:
        monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", value)
    expected = taker()
    assert destination_from_environment(lambda: expected) is expected


@pytest.mark.parametrize("value", ["", "http/protobuf"])
def test_otlp_can_be_chosen(value: str, monkeypatch: pytest.MonkeyPatch):
    """AGENT_GATEWAY_EXPORTER=otlp sends by OTLP over HTTP, with OpenTelemetry's names."""
    monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", value)
    destination = destination_from_environment(taker)
    assert isinstance(destination, OtlpDestination)
    assert destination.convention is Convention.OTEL


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AGENT_GATEWAY_EXPORTER": "carrier-pigeon"}, ["AGENT_GATEWAY_EXPORTER", "'carrier-pigeon'", "mlflow, otlp"]),
        ({"AGENT_GATEWAY_EXPORTER": "OTLP"}, ["AGENT_GATEWAY_EXPORTER", "'OTLP'", "mlflow, otlp"]),
        (
            {"AGENT_GATEWAY_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            ["'grpc'", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "4318"],
        ),
        (
            {"AGENT_GATEWAY_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            ["'http/json'", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"],
        ),
        (
            {"AGENT_GATEWAY_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"},
            ["OTEL_EXPORTER_OTLP_ENDPOINT", "'localhost:4318'", "http://"],
        ),
        (
            {"AGENT_GATEWAY_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "collector"},
            ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "'collector'", "http://"],
        ),
    ],
)
def test_a_value_that_cannot_work_is_an_error_at_once(
    variables: dict[str, str], said: list[str], monkeypatch: pytest.MonkeyPatch
):
    """A bad value is one ConfigurationError that names the variable or value and what can be given instead."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as raised:
        destination_from_environment(taker)
    for part in said:
        assert part in str(raised.value)


def test_a_tracking_uri_that_mlflow_does_not_know_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch):
    """An MLFLOW_TRACKING_URI with a scheme that MLflow does not have is one ConfigurationError."""
    # What was set in this process goes before the variable.
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "carrier-pigeon://host")
    with pytest.raises(ConfigurationError, match="MLFLOW_TRACKING_URI"):
        destination_from_environment()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    """Without OpenTelemetry's exporter the error says which extra to install."""
    monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("server"))):
        destination_from_environment(taker)


@pytest.mark.parametrize(("value", "experiment"), [(None, "0"), ("", "0"), ("7", "7")])
def test_the_experiment_can_be_chosen(value: str | None, experiment: str, monkeypatch: pytest.MonkeyPatch):
    """AGENT_GATEWAY_EXPERIMENT_ID is the experiment's id; by default MLflow's default experiment."""
    if value is not None:
        monkeypatch.setenv("AGENT_GATEWAY_EXPERIMENT_ID", value)
    assert experiment_id_from_environment() == experiment


@pytest.mark.parametrize("value", ["my experiment", "-1", "1.5", "0x1"])
def test_an_experiment_that_is_no_number_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch):
    """A name in the place of an id is one ConfigurationError with the variable's name."""
    monkeypatch.setenv("AGENT_GATEWAY_EXPERIMENT_ID", value)
    with pytest.raises(ConfigurationError, match="AGENT_GATEWAY_EXPERIMENT_ID"):
        experiment_id_from_environment()


def call_under(parent: TraceContext | None) -> Any:
    """Return a full call in the caller's trace, with times that are now."""
    assert parent is not None
    call = full_call(parent=parent)
    for facts in (call, *call.attempts):
        facts.span_id = new_span_id()
    return call


def agents_call(in_span: Callable[[Any], object] = lambda call: None) -> tuple[str, Any]:
    """Trace an agent that makes a call; returns the trace's id and the call.

    Args:
        in_span: Runs inside the agent's span, so before MLflow stores the trace.
    """
    with mlflow.start_span("agent") as agent:
        call = call_under(current_trace_context())
        in_span(call)
    return str(agent.trace_id), call


def stored(trace_id: str) -> Trace:
    """Return a trace as the store has it."""
    trace: Trace = MlflowClient().get_trace(trace_id)
    return trace


@pytest.mark.parametrize("first", ["mirror", "caller"])
def test_the_mirror_joins_the_callers_trace(first: str, caller: str, store_uri: str):
    """Whichever comes first, the trace is one, in the caller's experiment, with its tokens and cost counted once."""
    store = SqlAlchemyStore(store_uri, "mlflow-artifacts:/")
    destination = MlflowDestination(store.log_spans, "0")

    def send(call: Any) -> None:
        destination.send(mirror(call, destination.convention))

    trace_id, call = agents_call(send if first == "mirror" else lambda call: None)
    if first == "caller":
        send(call)
    send(call)  # once more, as after an answer that was lost

    trace = stored(trace_id)
    assert trace.info.experiment_id == caller
    assert trace.info.token_usage == {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 2,
    }
    assert trace.info.cost == {"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.3}
    spans = {span.name: span for span in trace.data.spans}
    assert len(trace.data.spans) == len(spans) == 4
    gateway = spans["gateway/chat"]
    assert gateway.parent_id == spans["agent"].span_id == f"{call.parent.span_id:016x}"
    assert gateway.attributes["mlflow.gateway.linkedTraceId"] == f"tr-{0xB:032x}"
    for name in ("provider/openai/gpt-4o", "provider/anthropic/claude-3-5-haiku"):
        assert spans[name].parent_id == gateway.span_id
    assert trace.info.state == "OK", "a failed attempt is not the agent's failure"
    assert "service.name" not in trace.info.tags, "the trace is the caller's and not the gateway's"


PLAIN_BYTES = 1_400
"""What MLflow stores of both spans of a plain call, as JSON. One fact more is 35 bytes or more."""


def test_what_a_plain_call_takes_in_the_database(caller: str, store_uri: str):
    """A plain call takes less than with MLflow's own mirror, and anything more in it has to be a decision."""
    now = time.time_ns()
    call = plain_call(
        parent=TraceContext(secrets.randbits(128), new_span_id(), 1),
        endpoint_id=f"e-{secrets.token_hex(16)}",
        start_time_ns=now,
        end_time_ns=now + 40_000_000,
        linked=TraceContext(secrets.randbits(128), new_span_id(), 1),
        # MLflow's store sets the cost itself.
        attempts=[plain_attempt(start_time_ns=now + 10_000_000, end_time_ns=now + 30_000_000, cost=None)],
    )
    destination = MlflowDestination(SqlAlchemyStore(store_uri, "mlflow-artifacts:/").log_spans, "0")
    destination.send(mirror(call, destination.convention))
    with closing(sqlite3.connect(store_uri.removeprefix("sqlite:///"))) as database:
        rows = database.execute("SELECT content FROM spans WHERE trace_id = ?", (f"tr-{call.parent.trace_id:032x}",))
        contents = [content for (content,) in rows]
    assert len(contents) == 2
    assert sum(len(content.encode()) for content in contents) <= PLAIN_BYTES


@pytest.mark.parametrize("late", [0, 1, 2, 3])
@pytest.mark.parametrize("counts_itself", [False, True])
def test_mirrors_that_come_after_the_end_are_counted(late: int, counts_itself: bool, caller: str, store_uri: str):
    """Of three calls, however many of the mirrors come after the trace has ended, all tokens are counted, once.

    A caller that counts its own tokens is taken at its word, as MLflow does.
    """
    store = SqlAlchemyStore(store_uri, "mlflow-artifacts:/")
    destination = MlflowDestination(store.log_spans, "0", lambda: store)
    with mlflow.start_span("agent") as agent:
        agent.set_attribute("mine", 1)
        calls = []
        for _ in range(3):
            with mlflow.start_span("step") as step:
                calls.append(call_under(current_trace_context()))
                if counts_itself:
                    usage = {"input_tokens": 11, "output_tokens": 6, "total_tokens": 17}
                    step.set_attribute("mlflow.chat.tokenUsage", usage)
        for call in calls[late:]:
            destination.send(mirror(call, destination.convention))
    before = stored(agent.trace_id).info
    for call in calls[:late]:
        destination.send(mirror(call, destination.convention))
    info = stored(agent.trace_id).info
    assert info.token_usage is not None
    assert info.token_usage["total_tokens"] == 3 * (17 if counts_itself else 15)
    assert info.cost is not None
    if not counts_itself:
        assert info.cost["total_cost"] == pytest.approx(0.9)
    assert (info.state, info.experiment_id, info.request_preview) == ("OK", caller, before.request_preview)
    assert (info.request_time, info.execution_duration) == (before.request_time, before.execution_duration)
    assert before.tags.items() <= info.tags.items()


def test_totals_that_cannot_be_completed_do_not_keep_mirrors(caplog: pytest.LogCaptureFixture):
    """Where MLflow does not let a trace be read, the mirrors are sent all the same, once, and one warning says so."""
    sent: list[Any] = []
    destination = MlflowDestination(lambda experiment, spans: sent.append(spans), "0", lambda: object())
    for _ in range(2):
        destination.send(mirror(full_call(), destination.convention))
    assert len(sent) == 2
    assert [record for record in caplog.records if "AttributeError" in record.getMessage()] != []


def test_the_tracking_uri_is_where_mirrors_go(caller: str, store_uri: str, monkeypatch: pytest.MonkeyPatch):
    """Outside an MLflow server, mirrors go where MLFLOW_TRACKING_URI says, into the chosen experiment at first."""
    monkeypatch.setenv("AGENT_GATEWAY_EXPERIMENT_ID", caller)
    exporter = Exporter(destination_from_environment())
    call = call_under(TraceContext(0xABCDEF, 0x123, 1))
    exporter.submit(call)
    assert exporter.flush(DEADLINE_S)
    trace = stored("tr-" + f"{0xABCDEF:032x}")
    assert trace.info.experiment_id == caller
    assert [span.name for span in trace.data.spans if span.parent_id == f"{0x123:016x}"] == ["gateway/chat"]
    assert exporter.dropped == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_store_that_keeps_no_spans_rejects_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MLflow's file store cannot log spans; that is said and not tried for ever."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store: AbstractStore = FileStore(str(tmp_path))
    destination = MlflowDestination(store.log_spans, "0")
    with pytest.raises(Rejected, match="database"):
        destination.send(mirror(full_call(), destination.convention))


@pytest.mark.parametrize("code", [INVALID_PARAMETER_VALUE, BAD_REQUEST])
def test_what_mlflow_refuses_is_rejected(code: int):
    """An answer that says that the spans are wrong is final; the reason is MLflow's code, not its message."""

    def refuse(experiment: str, spans: list[Any]) -> None:
        raise MlflowException("canary", error_code=code)

    destination = MlflowDestination(refuse, "0")
    with pytest.raises(Rejected) as raised:
        destination.send(mirror(full_call(), destination.convention))
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    "code",
    [
        INTERNAL_ERROR,
        TEMPORARILY_UNAVAILABLE,
        REQUEST_LIMIT_EXCEEDED,
        UNAUTHENTICATED,
        PERMISSION_DENIED,
        RESOURCE_DOES_NOT_EXIST,
    ],
)
def test_what_may_be_mended_is_tried_again(code: int):
    """A server in trouble, a missing permission or experiment may be mended, so the mirrors wait."""

    def fail(experiment: str, spans: list[Any]) -> None:
        raise MlflowException("not now", error_code=code)

    destination = MlflowDestination(fail, "0")
    with pytest.raises(MlflowException):
        destination.send(mirror(full_call(), destination.convention))
