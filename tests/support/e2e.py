"""Helpers of the end-to-end tests: reading a trace as a user's tools do, and checks for every mirror."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Set
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx
import mlflow
import openai
from mlflow.entities import Span, Trace
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracing.client import TracingClient

from agent_gateway_client import wrap_httpx, wrap_openai
from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.traces import joined
from agent_gateway_client.w3c import TraceContext
from tests.support.server import begin_trace

DEADLINE_S = 90.0
"""How long a test waits for something that takes less than a second on an idle machine."""

USER = {"role": "user", "content": "one two three"}
CHAT: dict[str, Any] = {"messages": [USER]}

T = TypeVar("T")


def wait_for(what: str, get: Callable[[], T | None]) -> T:
    """Return the result of ``get`` as soon as it is truthy."""
    deadline = time.monotonic() + DEADLINE_S
    pause = 0.05
    while True:
        found = get()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s for {what}"
        time.sleep(pause)
        # Asking costs the server as much as a call.
        pause = min(1.5 * pause, 0.5)


@contextmanager
def tracing_into(gateway: DemoGateway) -> Iterator[str]:
    """Trace into the agents' own experiment in a gateway's MLflow; yields its id.

    Wait for each trace inside, see :func:`mirrored`: waiting for everything in flight takes seconds.
    """
    mlflow.set_tracking_uri(gateway.tracking_uri)
    learn_server_version()
    yield str(mlflow.set_experiment("agents").experiment_id)


def learn_server_version() -> None:
    """Make MLflow's client learn that its server stores spans.

    It asks for the server's version once, with a timeout of three seconds, and without an answer the process sends no
    spans for its whole life. A server that has just been started on a busy machine may take longer.
    """
    creds = TracingClient().store.get_host_creds()

    def version() -> Any:
        RestStore._get_server_version.cache_clear()
        return RestStore._get_server_version(creds)

    wait_for("MLflow's version", version)


def openai_client(gateway: DemoGateway, **options: Any) -> openai.OpenAI:
    """Return a wrapped OpenAI client for a gateway."""
    options = {"base_url": gateway.openai_base_url, "api_key": "none", "max_retries": 0, **options}
    return wrap_openai(openai.OpenAI(timeout=DEADLINE_S, **options))


def async_openai_client(gateway: DemoGateway, **options: Any) -> openai.AsyncOpenAI:
    """Return a wrapped asynchronous OpenAI client for a gateway."""
    options = {"base_url": gateway.openai_base_url, "api_key": "none", "max_retries": 0, **options}
    return wrap_openai(openai.AsyncOpenAI(timeout=DEADLINE_S, **options))


def httpx_client(gateway: DemoGateway, **options: Any) -> httpx.Client:
    """Return a wrapped httpx client for all of a gateway's routes."""
    return wrap_httpx(httpx.Client(base_url=gateway.gateway_url, timeout=DEADLINE_S, **options))


def read_trace(trace_id: str) -> Trace | None:
    """Return a trace as MLflow's server has it; ``None`` if it is not there yet."""
    trace: Trace | None = mlflow.get_trace(trace_id)
    return trace


def mirrors_in(trace: Trace) -> list[Span]:
    """Return the mirrors' gateway spans in order of their start."""
    return joined.mirrors_in(trace.data.spans)


def children_of(trace: Trace, span: Span) -> list[Span]:
    """Return a span's direct children in order of their start."""
    return joined.children_of(trace.data.spans, span)


def tree(trace: Trace, span: Span) -> dict[str, Any]:
    """Return the names below a span, with the error types of failed spans."""
    below = {}
    for child in children_of(trace, span):
        assert span.start_time_ns <= child.start_time_ns <= child.end_time_ns <= span.end_time_ns
        error = child.attributes.get("error.type")
        below[f"{child.name} {error}" if error else child.name] = tree(trace, child)
    return below


@contextmanager
def open_step() -> Iterator[Span]:
    """An agent's span whose trace MLflow already knows, so that mirrors are stored while the span is open."""
    with mlflow.start_span("agent"):
        with mlflow.start_span("before"):
            pass
        with mlflow.start_span("step") as step:
            yield step


def begun(trace_id: str) -> str:
    """Start a trace in the MLflow server of this process's client, as if an agent had sent it; returns its id."""
    begin_trace(TracingClient().store, TraceContext(int(trace_id, 16), 1, 1))
    return trace_id


def wait_until_noticed(step: Span, database: "Database") -> None:
    """Keep the caller's span open until its mirror is there, like an agent that goes on with something else."""
    wait_for("the mirror", lambda: any(row["name"].startswith("gateway/") for row in database.spans(step.trace_id)))


def mirrored(caller: Span, count: int = 1) -> Trace:
    """Return an ended span's trace once it is complete: the client's own spans and this many mirrors.

    Args:
        caller: Any span of the trace.
        count: The number of mirrors to wait for.
    """
    return complete_trace(caller.trace_id, count, {caller.span_id})


def complete_trace(trace_id: str, count: int, spans: Set[str] = frozenset()) -> Trace:
    """Return a trace once it is complete.

    Args:
        trace_id: The trace.
        count: The number of mirrors to wait for.
        spans: Ids of the client's own spans to wait for.
    """

    def complete() -> Trace | None:
        trace = read_trace(trace_id)
        if trace is None or trace.info.state == "IN_PROGRESS" or len(mirrors_in(trace)) < count:
            return None
        # The client first sends its spans; then the trace moves from the default experiment to the client's.
        if "mlflow.trace_schema.version" not in trace.info.trace_metadata:
            return None
        if not spans <= {span.span_id for span in trace.data.spans}:
            return None
        # MLflow's client reads the trace's info, like its tokens, before it reads the spans.
        return read_trace(trace_id)

    return wait_for(f"{count} mirrors in {trace_id}", complete)


def linked(mirror: Span) -> Trace:
    """Return the gateway's own trace that a mirror links to, once it has ended."""
    trace_id = mirror.attributes["mlflow.gateway.linkedTraceId"]
    assert [link.trace_id for link in mirror.links] == [trace_id]

    def ended() -> Trace | None:
        trace = read_trace(trace_id)
        if trace is None or trace.info.state == "IN_PROGRESS" or not all(s.end_time_ns for s in trace.data.spans):
            return None
        # MLflow first stores the spans, then the trace's info.
        return trace if "mlflow.gateway.requestType" in trace.info.trace_metadata else None

    return wait_for(f"the linked trace {trace_id}", ended)


def assert_mirror(
    trace: Trace, mirror: Span, caller: Span, attempts: list[tuple[str, str]], *, is_within: bool = True
) -> list[Span]:
    """Check a call's mirror; returns the spans of its attempts.

    Args:
        trace: The caller's trace.
        mirror: The gateway's span in it.
        caller: The innermost span that was active when the request was sent.
        attempts: ``provider/model`` and status of each attempt.
        is_within: Whether the caller waited for the end of the response.
    """
    known = {span.span_id: span for span in (caller, *trace.data.spans)}
    assert joined.fault_of(list(known.values()), mirror, caller.span_id, is_within=is_within) is None
    assert caller.start_time_ns <= mirror.start_time_ns
    spans = children_of(trace, mirror)
    assert [(span.name, span.status.status_code.value) for span in spans] == [
        (f"provider/{name}", status) for name, status in attempts
    ]
    for span, (name, status) in zip(spans, attempts, strict=True):
        provider, _, model = name.partition("/")
        assert span.attributes["mlflow.llm.provider"] == provider
        assert span.attributes["mlflow.llm.model"] == model
        assert ("error.type" in span.attributes) is (status == "ERROR")
    for earlier, later in pairwise(spans):
        assert earlier.end_time_ns is not None
        assert earlier.end_time_ns <= later.start_time_ns
    for span in (mirror, *spans):
        assert span.inputs is None
        assert span.outputs is None
        assert span.status.description == ""
    return spans


def assert_linked(mirror: Span) -> Trace:
    """Assert that the mirror and the gateway's own trace link to each other; returns the latter."""
    trace = linked(mirror)
    assert trace.info.trace_id != mirror.trace_id
    assert trace.info.trace_metadata["agent_gateway.caller.traceId"] == mirror.trace_id
    assert trace.info.trace_metadata["agent_gateway.caller.spanId"] == mirror.parent_id
    (root,) = [span for span in trace.data.spans if span.parent_id is None]
    assert [link.span_id for link in mirror.links] == [root.span_id]
    assert root.name == mirror.name
    return trace


class Database:
    """The server's SQLite file, read without MLflow."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=DEADLINE_S)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, values)]

    def rows_of(self, trace_id: str) -> list[dict[str, Any]]:
        """Return every row about a trace, in any table."""
        found = []
        for table in self.rows("SELECT name FROM sqlite_master WHERE type = 'table'"):
            columns = {column["name"] for column in self.rows(f"PRAGMA table_info({table['name']})")}
            for key in columns & {"trace_id", "request_id"}:
                found += [
                    {"table": table["name"], **row}
                    for row in self.rows(f"SELECT * FROM {table['name']} WHERE {key} = ?", trace_id)
                ]
        return found

    def spans(self, trace_id: str) -> list[dict[str, Any]]:
        """Return the rows of a trace's spans, with their content decoded from JSON."""
        rows = self.rows("SELECT * FROM spans WHERE trace_id = ? ORDER BY start_time_unix_nano", trace_id)
        return [{**row, "content": json.loads(row["content"])} for row in rows]

    def mirror_count(self) -> int:
        """Count the mirrors of all traces; the gateway's own spans with that name have no parent."""
        (row,) = self.rows(
            "SELECT count(*) AS count FROM spans WHERE name LIKE 'gateway/%' AND parent_span_id IS NOT NULL"
        )
        return int(row["count"])
