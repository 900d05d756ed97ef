"""The choice of a destination in the environment, and MLflow as the destination."""

import logging
import re
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
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
    INVALID_STATE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
    UNAUTHENTICATED,
)
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.store.tracking.file_store import FileStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from agent_gateway_client._install import install_command
from agent_gateway_client.active_span import current_trace_context
from agent_gateway_client.errors import ConfigurationError, MissingDependencyError
from agent_gateway_client.server.call import new_span_id
from agent_gateway_client.server.export import Destination, Exporter, Refused, Unavailable
from agent_gateway_client.server.export.destination import ExportError, TraceGone
from agent_gateway_client.server.export.environment import (
    check_environment,
    destination_from_environment,
    exporter_from_environment,
    wait_seconds_from_environment,
)
from agent_gateway_client.server.export.mlflow import MlflowDestination, as_export_error
from agent_gateway_client.server.export.mlflow_store import SqlStore
from agent_gateway_client.server.export.otlp import OtlpDestination
from agent_gateway_client.server.mirror import Convention
from agent_gateway_client.w3c import TraceContext
from tests.support.mlflow_database import database_in
from tests.support.providers import ROWS
from tests.support.server import (
    DEADLINE_S,
    MemoryDestination,
    begin_trace,
    deliver_to,
    full_call,
    plain_attempt,
    plain_call,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the variables of the machine's user that configure a destination."""
    for name in ("AGENT_GATEWAY_EXPORTER", "AGENT_GATEWAY_EXPERIMENT_ID", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite database with MLflow's tables."""
    return database_in(tmp_path_factory.mktemp("store"))


@pytest.fixture
def caller(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Trace into the caller's own experiment in the database; yields its id."""
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
    """Return a destination that replaces MLflow's."""
    return MemoryDestination()


@pytest.mark.parametrize("value", [None, "", "mlflow"])
def test_mlflow_is_the_default(value: str | None, monkeypatch: pytest.MonkeyPatch):
    """Without a choice, and if MLflow is chosen, the given factory creates MLflow's destination."""
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
    """A bad value raises one ConfigurationError with the variable or value and the valid choices."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as raised:
        destination_from_environment(taker)
    for part in said:
        assert part in str(raised.value)


def test_a_tracking_uri_that_mlflow_does_not_know_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch):
    """An MLFLOW_TRACKING_URI with a scheme that MLflow does not have is one ConfigurationError."""
    # A URI set in this process takes precedence over the variable.
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "carrier-pigeon://host")
    with pytest.raises(ConfigurationError, match="MLFLOW_TRACKING_URI"):
        exporter_from_environment()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    """Without OpenTelemetry's exporter the error names the extra to install."""
    monkeypatch.setenv("AGENT_GATEWAY_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install_command("server"))):
        destination_from_environment(taker)


@pytest.mark.parametrize(("value", "seconds"), [(None, 3600.0), ("", 3600.0), ("0", 0.0), ("7.5", 7.5)])
def test_the_wait_can_be_chosen(value: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch):
    """AGENT_GATEWAY_WAIT_SECONDS sets how long a mirror waits for its caller's trace; an hour by default."""
    if value is not None:
        monkeypatch.setenv("AGENT_GATEWAY_WAIT_SECONDS", value)
    assert wait_seconds_from_environment() == seconds


@pytest.mark.parametrize("value", ["an hour", "-1", "nan", "inf"])
def test_a_wait_that_is_not_a_time_is_an_error(value: str, monkeypatch: pytest.MonkeyPatch):
    """Anything but a number of seconds raises one ConfigurationError with the variable's name."""
    monkeypatch.setenv("AGENT_GATEWAY_WAIT_SECONDS", value)
    with pytest.raises(ConfigurationError, match="AGENT_GATEWAY_WAIT_SECONDS"):
        wait_seconds_from_environment()


def test_the_experiment_cannot_be_chosen_any_more(monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture):
    """AGENT_GATEWAY_EXPERIMENT_ID was removed; the error tells users who still set it why."""
    monkeypatch.setenv("AGENT_GATEWAY_EXPERIMENT_ID", "7")
    check_environment()
    assert ["3.18" in message for message in logged.messages] == [True]


def call_under(parent: TraceContext | None) -> Any:
    """Return a full call in the caller's trace, with times that are now."""
    assert parent is not None
    call = full_call(parent=parent)
    for facts in (call, *call.attempts):
        facts.span_id = new_span_id()
    return call


def agents_call(in_span: Callable[[Any], object] = lambda call: None) -> tuple[str, Any]:
    """Trace an agent that makes a call; returns the trace id and the call.

    Args:
        in_span: Runs inside the agent's span, before MLflow stores the trace.
    """
    with mlflow.start_span("agent") as agent:
        call = call_under(current_trace_context())
        in_span(call)
    return str(agent.trace_id), call


def stored(trace_id: str) -> Trace:
    """Return a trace as stored."""
    trace: Trace = MlflowClient().get_trace(trace_id)
    return trace


@pytest.fixture
def store(store_uri: str) -> Iterator[SqlAlchemyStore]:
    store = SqlAlchemyStore(store_uri, "mlflow-artifacts:/")
    yield store
    store.engine.dispose()


@pytest.fixture
def destination(store: SqlAlchemyStore) -> MlflowDestination:
    return MlflowDestination(SqlStore(lambda: store))


@pytest.mark.parametrize("first", ["mirror", "caller"])
def test_the_mirror_joins_the_callers_trace(first: str, caller: str, destination: MlflowDestination):
    """In either order the trace stays one, in the caller's experiment, with tokens and cost counted once."""
    exporter = Exporter(destination)

    def send(call: Any) -> None:
        exporter.submit(call)
        # The mirror waits until the caller's trace is known.
        assert exporter.flush(DEADLINE_S if first == "caller" else 0.2) is (first == "caller")

    trace_id, call = agents_call(send if first == "mirror" else lambda call: None)
    if first == "caller":
        send(call)
    assert exporter.flush(DEADLINE_S)
    deliver_to(destination, call)  # Sent again, as after a lost answer.

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


def test_cache_writes_for_one_hour_have_their_price(
    caller: str, store: SqlAlchemyStore, destination: MlflowDestination, monkeypatch: pytest.MonkeyPatch
):
    """MLflow's price list has the price of Anthropic's one-hour cache writes; LiteLLM's function does not."""
    monkeypatch.setitem(sys.modules, "litellm", None)
    row = next(row for row in ROWS if row.name == "Anthropic")
    model = "claude-sonnet-4-5-20250929"
    now = time.time_ns()
    costs = []
    for usage in (row.usage, replace(row.usage, cache_creation_input_tokens_above_1hr=None)):
        times = {"start_time_ns": now, "end_time_ns": now + 1_000}
        attempt = plain_attempt(provider="anthropic", model=model, cost=None, usage=usage, **times)
        call = plain_call(parent=TraceContext(secrets.randbits(128), new_span_id(), 1), attempts=[attempt], **times)
        begin_trace(store, call.parent)
        deliver_to(destination, call)
        spans = stored(f"tr-{call.parent.trace_id:032x}").data.spans
        costs += [cost["input_cost"] for span in spans if (cost := span.attributes.get("mlflow.llm.cost"))]
    # 10 tokens, 40 read, 100 written for five minutes and 200 for one hour, or 300 for five minutes.
    assert costs == pytest.approx([0.001617, 0.001167])


PLAIN_BYTES = 1_400
"""What MLflow stores for both spans of a plain call, as JSON. One more fact takes 35 bytes or more."""


def test_what_a_plain_call_takes_in_the_database(
    caller: str, store_uri: str, store: SqlAlchemyStore, destination: MlflowDestination
):
    """A plain call takes less space than with MLflow's own mirror; adding to it must be a decision."""
    now = time.time_ns()
    call = plain_call(
        parent=TraceContext(secrets.randbits(128), new_span_id(), 1),
        endpoint_id=f"e-{secrets.token_hex(16)}",
        start_time_ns=now,
        end_time_ns=now + 40_000_000,
        linked=TraceContext(secrets.randbits(128), new_span_id(), 1),
        # MLflow's store computes the cost.
        attempts=[plain_attempt(start_time_ns=now + 10_000_000, end_time_ns=now + 30_000_000, cost=None)],
    )
    begin_trace(store, call.parent)
    deliver_to(destination, call)
    with closing(sqlite3.connect(store_uri.removeprefix("sqlite:///"))) as database:
        rows = database.execute("SELECT content FROM spans WHERE trace_id = ?", (f"tr-{call.parent.trace_id:032x}",))
        contents = [content for (content,) in rows]
    assert len(contents) == 2
    assert sum(len(content.encode()) for content in contents) <= PLAIN_BYTES


@pytest.mark.parametrize("late", [0, 1, 2, 3])
@pytest.mark.parametrize("counts_itself", [False, True])
def test_mirrors_that_come_after_the_end_are_counted(
    late: int, counts_itself: bool, caller: str, destination: MlflowDestination
):
    """Of three calls, all tokens are counted once, however many mirrors arrive after the trace has ended.

    A caller's own token counts are used as they are, as MLflow does.
    """
    with mlflow.start_span("agent") as agent:
        agent.set_attribute("mine", 1)
        calls = []
        for _ in range(3):
            with mlflow.start_span("step") as step:
                calls.append(call_under(current_trace_context()))
                if counts_itself:
                    usage = {"input_tokens": 11, "output_tokens": 6, "total_tokens": 17}
                    step.set_attribute("mlflow.chat.tokenUsage", usage)
    before = stored(agent.trace_id).info
    for call in calls[late:]:
        deliver_to(destination, call)
    for call in calls[:late]:
        deliver_to(destination, call)
    info = stored(agent.trace_id).info
    assert info.token_usage is not None
    assert info.token_usage["total_tokens"] == 3 * (17 if counts_itself else 15)
    assert info.cost is not None
    assert info.cost["total_cost"] == pytest.approx(0.9)
    assert (info.state, info.experiment_id, info.request_preview) == ("OK", caller, before.request_preview)
    assert (info.request_time, info.execution_duration) == (before.request_time, before.execution_duration)
    assert before.tags.items() <= info.tags.items()


class BrokenStore(SqlStore):
    """A store in which the totals of traces cannot be read."""

    def totals_of(self, trace_ids: Any, experiment_ids: Any, known: Any) -> Any:
        raise AttributeError("canary")


def test_totals_that_cannot_be_completed_do_not_keep_mirrors(
    caller: str, store: SqlAlchemyStore, logged: pytest.LogCaptureFixture
):
    """If MLflow does not allow reading a trace, mirrors are still sent, and one warning says so."""
    begin_trace(store)
    destination = MlflowDestination(BrokenStore(lambda: store))
    exporter = Exporter(destination)
    for _ in range(2):
        exporter.submit(full_call())
        assert exporter.flush(DEADLINE_S)
    assert (exporter.counts().sent, exporter.dropped) == (2, 0)
    assert ["AttributeError" in message for message in logged.messages] == [True]
    assert "canary" not in logged.text
    # Its thread would retry and warn in other tests.
    destination.after_fork()


def test_the_tracking_uri_is_where_mirrors_go(caller: str):
    """Outside an MLflow server, mirrors go to MLFLOW_TRACKING_URI."""
    exporter = exporter_from_environment()
    trace_id, call = agents_call()
    exporter.submit(call)
    assert exporter.flush(DEADLINE_S)
    trace = stored(trace_id)
    assert trace.info.experiment_id == caller
    parent = f"{call.parent.span_id:016x}"
    assert [span.name for span in trace.data.spans if span.parent_id == parent] == ["gateway/chat"]
    assert exporter.dropped == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_store_that_keeps_no_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MLflow's file store cannot log spans; a warning says so, and the gateway works on."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store: AbstractStore = FileStore(str(tmp_path))
    destination = MlflowDestination(SqlStore(lambda: store))
    with pytest.raises(Unavailable, match="database"):
        deliver_to(destination, full_call())


def refused(code: int) -> Exception:
    """Return the exporter's error for an MLflow exception with this code."""
    return as_export_error(MlflowException("canary", error_code=code))


@pytest.mark.parametrize("code", [INVALID_PARAMETER_VALUE, BAD_REQUEST])
def test_what_mlflow_refuses(code: int):
    """An answer that calls the spans invalid rejects them; the reason is MLflow's code, not its message."""
    error = refused(code)
    assert type(error) is Refused
    assert "canary" not in str(error)


@pytest.mark.parametrize("code", [INVALID_STATE, RESOURCE_DOES_NOT_EXIST])
def test_a_trace_that_is_gone(code: int):
    """A deleted or archived trace does not accept spans."""
    assert type(refused(code)) is TraceGone


@pytest.mark.parametrize("code", [TEMPORARILY_UNAVAILABLE, REQUEST_LIMIT_EXCEEDED, UNAUTHENTICATED, PERMISSION_DENIED])
def test_what_says_that_the_store_is_away(code: int):
    """A server in trouble or a missing permission may be fixed, so the mirrors wait."""
    error = refused(code)
    assert type(error) is Unavailable
    assert "canary" not in str(error)


def test_an_error_of_the_server_says_nothing_of_the_store():
    """The server may fail for some spans (HTTP 500) and accept others."""
    error = refused(INTERNAL_ERROR)
    assert type(error) is ExportError
    assert str(error) == "HTTP 500"
