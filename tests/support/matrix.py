"""The matrix: frameworks, ways to call a model, and settings of autolog, against a real gateway.

A framework has two files. ``columns/<framework>.py``, next to this one, is a program that makes all calls with one
setting of autolog, in a separate process because turning autolog off leaves traces of it::

    AUTOLOG = ("off", "on")
    CELLS = [Cell("LiteLLM", "completion", completion), ...]

    def set_up(gateway_url, autolog): ...  # returns what each cell's function is called with

    if __name__ == "__main__":
        run_column(CELLS, set_up)

``e2e/test_<framework>_matrix.py`` asserts that every cell is right, and prints a table::

    columns = columns_of(litellm)

    @each_cell(litellm, "LiteLLM")
    def test_litellm(cell, autolog, columns):
        assert_cell(cell, columns[autolog], autolog)
"""

import asyncio
import inspect
import json
import logging
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlflow
import pytest
from mlflow.entities import Span, Trace
from mlflow.tracing.utils import aggregate_usage_from_spans

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support import warm_python
from tests.support.e2e import (
    assert_linked,
    assert_mirror,
    children_of,
    learn_server_version,
    mirrors_in,
    read_trace,
    wait_for,
)
from tests.support.http_server import HttpServer

ROOT = Path(__file__).parents[2]
COLUMN_DEADLINE_S = 600.0
"""How long a test waits for a program that takes some 15 s on an idle machine."""

MINI = ("openai/gpt-4o-mini", "OK")


class Cell(NamedTuple):
    """A way to call a model.

    Attributes:
        framework: The framework, or the part of it, as its users name it.
        mode: The operation, in the framework's words.
        run: Runs it with the result of the program's ``set_up``; may be a coroutine function. Concurrent calls need
            different prompts, by which they are recognized.
        calls: The number of model calls that it makes.
        attempts: ``provider/model`` and status of each of the gateway's attempts for each call.
        callers: Types of the spans that autolog makes for model calls; empty if it makes none that is active while the
            request is sent.
        nested: Whether autolog makes several such spans for one call, each inside the one before.
        leaves_early: Whether the framework stops reading once it has the last event, and ends its span before the
            response ends.
        beside: Whether the framework's own span of the call has the tokens too and is a sibling of the mirror, because
            it is no longer in the context when the request is sent.
    """

    framework: str
    mode: str
    run: Callable[[Any], Any]
    calls: int = 1
    attempts: Sequence[tuple[str, str]] = (MINI,)
    callers: Sequence[str] = ("CHAT_MODEL", "LLM", "EMBEDDING")
    nested: bool = False
    leaves_early: bool = False
    beside: bool = False

    def __str__(self) -> str:
        return f"{self.framework}: {self.mode}"


class Column(Protocol):
    """A framework's program, as a module.

    Attributes:
        AUTOLOG: The settings of autolog.
        CELLS: All cells, each of which runs with each setting.
    """

    __name__: str
    AUTOLOG: Sequence[str]
    CELLS: Sequence[Cell]


class Made(NamedTuple):
    """The result of a cell.

    Attributes:
        trace_id: The trace of its calls.
        span_id: The span around the calls.
        error: Why they failed.
    """

    trace_id: str
    span_id: str
    error: str | None


def run_column(cells: Sequence[Cell], set_up: Callable[[str, str], Any]) -> None:
    """Run all cells with one setting of autolog, and print their results.

    Args:
        cells: All cells.
        set_up: Called with the gateway's URL and the setting of autolog, after MLflow's experiment is set.
    """
    gateway_url, tracking_uri, autolog = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(tracking_uri)
    learn_server_version()
    mlflow.set_experiment(f"{cells[0].framework}, autolog {autolog}")
    given = set_up(gateway_url, autolog)
    loop = asyncio.new_event_loop()
    made = {}
    for cell in cells:
        error = None
        with mlflow.start_span(str(cell)) as span:
            try:
                _finished(cell.run(given), loop)
            except Exception:
                error = traceback.format_exc()
        made[str(cell)] = Made(span.trace_id, span.span_id, error)
    mlflow.flush_trace_async_logging()
    print(json.dumps(made))


def _finished(result: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Await a result if it is awaitable, in the caller's context and in one loop: frameworks keep async clients."""

    async def wait() -> None:
        await result

    if inspect.isawaitable(result):
        loop.run_until_complete(wait())


def start(column: Column, gateway_url: str, tracking_uri: str, autolog: str) -> "subprocess.Popen[str]":
    """Start a framework's program."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MLFLOW_ASYNC_TRACE_LOGGING_MAX_INTERVAL_MILLIS": "200",
    }
    return subprocess.Popen(
        [warm_python.interpreter(), "-m", column.__name__, gateway_url, tracking_uri, autolog],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def made_by(running: "subprocess.Popen[str]") -> dict[str, Made]:
    """Return the results of the cells once a framework's program has ended."""
    output, errors = running.communicate(timeout=COLUMN_DEADLINE_S)
    assert running.returncode == 0, errors
    return {name: Made(*made) for name, made in json.loads(output.splitlines()[-1]).items()}


class Columns(dict[str, dict[str, Made]]):
    """The results of the cells, by setting of autolog and by name; all settings run at the same time."""

    def __init__(self, column: Column, gateway: DemoGateway) -> None:
        super().__init__()
        self._running = {
            autolog: start(column, gateway.gateway_url, gateway.tracking_uri, autolog) for autolog in column.AUTOLOG
        }

    def __missing__(self, autolog: str) -> dict[str, Made]:
        self[autolog] = made_by(self._running[autolog])
        return self[autolog]

    def close(self) -> None:
        """End the programs that no test waited for."""
        for running in self._running.values():
            running.kill()
            running.communicate()


def columns_of(column: Column) -> Any:
    """Return the fixture ``columns`` of a framework's test module."""

    @pytest.fixture(scope="module", name="columns")
    def columns(gateway: DemoGateway, tracing: str) -> Iterator[Columns]:
        columns = Columns(column, gateway)
        yield columns
        columns.close()

    return columns


def each_cell(column: Column, title: str) -> Callable[[Any], Any]:
    """Return a decorator for a test with the parameters ``cell`` and ``autolog``; ``title`` is the table's title."""

    def decorate(test: Any) -> Any:
        for name, values in (("cell", column.CELLS), ("autolog", column.AUTOLOG)):
            test = pytest.mark.parametrize(name, values, ids=str)(test)
        return pytest.mark.table(title, rows="cell", columns="autolog")(test)

    return decorate


def assert_cell(cell: Cell, column: dict[str, Made], autolog: str) -> None:
    """Assert that each call of a cell has one mirror, below the span of that call, and its tokens are counted once.

    The mirror's parent is the span in the request. Its call is identified by the prompt: the prompt in the gateway's
    own trace must be in the inputs of the span above the mirror.
    """
    trace_id, span_id, error = column[str(cell)]
    assert error is None, error
    trace = wait_for(f"{cell.calls} mirrors in {trace_id}", lambda: _complete(trace_id, cell.calls))
    mirrors = mirrors_in(trace)
    assert len(mirrors) == cell.calls, f"{len(mirrors)} mirrors in {trace_id}"
    spans = {span.span_id: span for span in trace.data.spans}
    if autolog == "off" or not cell.callers:
        callers = [span_id] * cell.calls
    else:
        calling = [span for span in trace.data.spans if span.span_type in cell.callers and is_clients(span)]
        callers = innermost(calling) if cell.nested else [span.span_id for span in calling]
    parents = [str(mirror.parent_id) for mirror in mirrors]
    assert sorted(parents) == sorted(callers), f"the mirrors are below {parents}, the calls are {callers}: {trace_id}"
    for mirror in mirrors:
        caller = spans[str(mirror.parent_id)]
        assert_mirror(trace, mirror, caller, list(cell.attempts), is_within=not cell.leaves_early)
        prompt = prompt_of(root_of(assert_linked(mirror)).inputs)
        if caller.span_id != span_id:
            assert prompt in json.dumps(caller.inputs), f"the mirror of {prompt!r} is below the call of {caller.inputs}"
    assert_tokens_counted_once(trace, mirrors, beside=cell.beside and autolog != "off")


def assert_other_hosts_get_nothing(column: Column, gateway: DemoGateway) -> None:
    """Assert that a gateway gets every cell's context, and that the host to which it redirects does not."""
    with HttpServer() as server:
        made = made_by(start(column, f"{server.gateway}/away", gateway.tracking_uri, "off"))
    at_gateway: set[str] = set()
    elsewhere = []
    for (url, _), sent in zip(server.requests, server.sent(), strict=True):
        if url.startswith(server.gateway):
            (traceparent,) = sent
            at_gateway.add(traceparent)
        else:
            elsewhere.append(sent)
    assert {tuple(value.split("-")[1:3]) for value in at_gateway} == {
        (cell.trace_id.removeprefix("tr-"), cell.span_id) for cell in made.values()
    }
    assert len(elsewhere) >= len(made)
    assert not any(elsewhere)


def _complete(trace_id: str, mirrors: int) -> Trace | None:
    """Return a trace once it has this many mirrors; the client's own spans were sent before its process ended."""
    trace = read_trace(trace_id)
    if trace is None or trace.info.state == "IN_PROGRESS" or len(mirrors_in(trace)) < mirrors:
        return None
    # Its tokens may be older than its spans: `assert_tokens_counted_once` reads them again.
    return trace


def is_clients(span: Span) -> bool:
    """Return whether a span is the client's own, not a mirror's."""
    return not span.name.startswith(("gateway/", "provider/"))


def innermost(spans: list[Span]) -> list[str]:
    """Return the ids of the spans that have no children."""
    outer = {span.parent_id for span in spans}
    return [span.span_id for span in spans if span.span_id not in outer]


def root_of(trace: Trace) -> Span:
    (root,) = [span for span in trace.data.spans if span.parent_id is None]
    return root


def prompt_of(request: Any) -> str:
    """Return the last message of a request, in each API's format."""
    kinds = ("messages", "input", "contents")
    given = next(request[kind] for kind in kinds if request.get(kind)) if isinstance(request, dict) else request
    last = given if isinstance(given, str) else given[-1]
    content = last if isinstance(last, str) else last.get("content") or last.get("output") or last.get("parts")
    return str(content if isinstance(content, str) else content[0].get("text") or content[0].get("content"))


def assert_tokens_counted_once(trace: Trace, mirrors: list[Span], *, beside: bool = False) -> None:
    """Assert that the trace's tokens are those that the provider reported to the gateway, call by call.

    MLflow does not count a span below one that reports tokens, so a mirror is not counted in addition to its caller.
    For a ``generate()`` with several prompts, ``mlflow.langchain.autolog()`` puts each prompt's span inside the
    previous one, with and without a gateway: such a trace has the tokens of the first prompt only, or of all prompts if
    MLflow received the inner spans before the outer ones.

    If a framework's span and a mirror are siblings, MLflow's client counts its own span, and the server uses that
    count. On SQLite there is a race if both are stored at once: the server finds the client's count in the trace, does
    not write it, and a concurrent mirror has added its own count. A count can also be lost; MLflow's own sum of all
    stored spans still shows how it counts them.
    """
    spans = {span.span_id: span for span in trace.data.spans}
    callers = {mirror.parent_id for mirror in mirrors}
    outer = []
    for mirror in mirrors:
        above = spans.get(str(spans[str(mirror.parent_id)].parent_id))
        if above is None or above.span_id not in callers or not above.attributes.get("mlflow.chat.tokenUsage"):
            outer.append(mirror)
    right = [_reported(trace, mirrors), _reported(trace, outer)]
    assert all(right), trace.info.trace_id
    if beside:
        right.append({kind: 2 * tokens for kind, tokens in right[0].items()})

    def counted() -> bool:
        now = read_trace(trace.info.trace_id)
        usages = [now.info.token_usage, aggregate_usage_from_spans(now.data.spans)] if now else []
        return any(usage.items() >= tokens.items() for usage in usages if usage for tokens in right)

    wait_for(f"{trace.info.trace_id} to have {right[0]}, not {trace.info.token_usage}", counted)


def _reported(trace: Trace, mirrors: list[Span]) -> dict[str, int]:
    """Add up the tokens that the provider reported for some calls."""
    usages = [span.attributes.get("mlflow.chat.tokenUsage", {}) for one in mirrors for span in children_of(trace, one)]
    sums = {kind: sum(usage.get(kind, 0) for usage in usages) for kind in ("input_tokens", "output_tokens")}
    return {kind: tokens for kind, tokens in sums.items() if tokens}
