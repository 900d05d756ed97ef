"""One table of checks for every gateway. The made-up gateway shows how little it takes to add another."""

import asyncio
import contextlib
import http.client
import inspect
import json
import secrets
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import mlflow
import pytest
from mlflow.entities import Span

from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.demo.provider import Provider
from tests.support.agent_calls import STREAM, Call, make_calls
from tests.support.e2e import (
    CHAT,
    USER,
    Database,
    assert_linked,
    assert_mirror,
    begun,
    complete_trace,
    mirrored,
    mirrors_in,
    open_step,
    wait_for,
    wait_until_noticed,
)
from tests.support.gateway_columns import COLUMNS
from tests.support.gateways import Column
from tests.support.made_up_gateway import MadeUpGateway
from tests.support.server import assert_told
from tests.support.traceparents import CASES

MINI = [("openai/gpt-4o-mini", "OK")]
FELL_BACK = [("openai/gpt-4o-fail-503", "ERROR"), *MINI]
CANARY = "c4n4ry7f3a"

IN_TABLE = pytest.mark.table("Gateways", columns="run")


class Run(NamedTuple):
    """A gateway, and one call of each mode through it."""

    column: Column
    calls: dict[str, Call]
    database: Database
    provider: Provider


@pytest.fixture(scope="module", params=[pytest.param(name, marks=IN_TABLE) for name in COLUMNS])
def run(request: pytest.FixtureRequest, gateway: DemoGateway, database: Database, tracing: str) -> Iterator[Run]:
    """The gateway of a column, and one call of each mode through it."""
    with COLUMNS[request.param](request) as column:
        yield Run(column, make_calls(column), database, gateway.provider)


def test_one_mirror_under_the_caller(run: Run):
    """Each call has one mirror, named after the endpoint, directly below the caller's innermost span."""
    found = {name: [(m.name, m.parent_id) for m in call.mirrors] for name, call in run.calls.items()}
    assert found == {name: [(f"gateway/{call.mode.model}", call.caller.span_id)] for name, call in run.calls.items()}


def test_times_are_contained(run: Run):
    """The caller's span contains the mirror, and the mirror contains its attempts in sequence."""
    for name, call in run.calls.items():
        mirror, caller = call.mirror, call.caller
        moments = [caller.start_time_ns, mirror.start_time_ns]
        for attempt in call.attempts:
            moments += [attempt.start_time_ns, attempt.end_time_ns]
        moments += [mirror.end_time_ns] if "end" in run.column.untold else [mirror.end_time_ns, caller.end_time_ns]
        assert all(earlier <= later for earlier, later in pairwise(moments)), (name, moments)


def test_status_is_the_calls_own(run: Run):
    """A call that failed for the agent has the error and its type; HTTP status and streaming are right too."""
    for name, call in run.calls.items():
        facts, failed = call.mirror.attributes, call.tokens is None
        assert call.mirror.status.status_code == ("ERROR" if failed else "OK"), name
        assert call.mirror.status.description == "", name
        assert ("error.type" in facts) is failed, name
        assert facts.get("error.type") != "client_disconnect", name
        is_cut = failed and call.status == 200
        status = 500 if is_cut and "status of a cut stream" in run.column.untold else call.status
        assert_told(facts, {"http.response.status_code": status})
        if status >= 400:
            assert facts["error.type"] == str(status), name
        else:
            assert_told(facts, {"gen_ai.request.stream": call.mode.streamed})
            has_first_chunk = call.mode.streamed and "first chunk" not in run.column.untold
            assert ("gen_ai.response.time_to_first_chunk" in facts) is has_first_chunk, name


def test_attempts_and_fallbacks(run: Run):
    """Each model that was tried is an attempt, in order, with the status of its answer."""
    for name, call in run.calls.items():
        told = [(span.name, span.status.status_code.value) for span in call.attempts]
        failures = [f"provider/openai/{model}" for model in call.models if "fail" in model or "broken" in model]
        assert [span for span, status in told if status == "ERROR"] == failures, name
        assert [span for span, _ in told] == [f"provider/openai/{model}" for model in call.models], name
        for span in call.attempts:
            model = span.attributes["mlflow.llm.model"]
            error = span.attributes.get("error.type")
            assert error == (model.partition("-fail-")[2] or error), name
            assert (error is None) is (span.status.status_code == "OK"), name


def test_tokens_are_counted_once(run: Run):
    """The trace has the tokens that the agent got, once, and their cost, with and without autolog's own count."""
    for name, call in run.calls.items():
        usage, cost = call.trace.info.token_usage or {}, call.trace.info.cost
        if call.tokens is None:
            assert not usage, name
            continue
        counted = (usage["input_tokens"], usage.get("output_tokens", 0), usage["total_tokens"])
        assert counted == (*call.tokens, sum(call.tokens)), name
        priced = [span for span in call.attempts if "mlflow.llm.cost" in span.attributes]
        assert cost == (priced[0].attributes["mlflow.llm.cost"] if priced else None), name
        assert priced in ([], [call.attempts[-1]]), name


def test_link_to_the_gateways_trace(run: Run):
    """The mirror and the gateway's own trace link to each other; a gateway without links has stored no trace."""
    for name, call in run.calls.items():
        own = {assert_linked(call.mirror).info.trace_id} if run.column.has_own_traces else set()
        assert len(call.mirror.links) == len(own), name
        assert ("mlflow.gateway.linkedTraceId" in call.mirror.attributes) is bool(own), name
        rows = run.database.rows(
            "SELECT DISTINCT trace_id FROM spans WHERE start_time_unix_nano BETWEEN ? AND ?",
            call.caller.start_time_ns,
            call.caller.end_time_ns,
        )
        assert {row["trace_id"] for row in rows} == own | {call.trace.info.trace_id}, name


HEADERS = {
    "x-canary": CANARY,
    CANARY: "1",
    "user-agent": CANARY,
    "cookie": f"session={CANARY}",
    "x-request-id": CANARY,
    "baggage": f"user={CANARY}",
}
ASK = {"messages": [{"role": "system", "content": CANARY}, {"role": "user", "content": f"say {CANARY}"}]}
FUNCTION = {"name": f"look_up_{CANARY}", "description": CANARY, "parameters": {"type": "object", "properties": {}}}
SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat/completions", {"model": "chat", "user": CANARY, "metadata": {CANARY: CANARY}, **ASK}),
    "stream": ("chat/completions", {"model": "chat", "stream": True, **ASK}),
    "tools": ("chat/completions", {"model": "chat", "tools": [{"type": "function", "function": FUNCTION}], **ASK}),
    "fallback": ("chat/completions", {"model": "fallback", **ASK}),
    "failing": ("chat/completions", {"model": "failing", **ASK}),
    "cut": ("chat/completions", {"model": "cut", "stream": True, **ASK}),
    "unknown": ("chat/completions", {"model": CANARY, **ASK}),
    "invalid": ("chat/completions", {"model": "chat", "messages": CANARY, CANARY: CANARY}),
    "embeddings": ("embeddings", {"model": "embeddings", "input": [CANARY]}),
    "responses": ("responses", {"model": "responses", "input": CANARY, "instructions": CANARY}),
}
"""Requests with a canary wherever the caller, the model or an error can insert text."""


def test_no_payload_is_stored(run: Run):
    """No row of the caller's trace contains text from the caller, the model or an error."""
    steps = {}
    with run.column.httpx_client(HEADERS) as client:
        for name, (path, body) in SAID.items():
            with mlflow.start_span("step") as step, contextlib.suppress(httpx.RemoteProtocolError):
                answer = client.post(f"{path}?q={CANARY}", json=body)
                assert CANARY in answer.text or not answer.is_success or name in ("stream", "cut", "embeddings")
            steps[name] = step
    for name, step in steps.items():
        # A gateway that rejects a caller before it asks a provider leaves nothing.
        is_silent = name == "unknown" or (name == "invalid" and "invalid request" in run.column.untold)
        complete_trace(step.trace_id, 0 if is_silent else 1, {step.span_id})
        rows = run.database.rows_of(step.trace_id)
        assert {"spans", "trace_info"} <= {row["table"] for row in rows}, name
        assert [row for row in rows if CANARY in json.dumps(row).lower()] == [], name


def test_provider_gets_no_trace_context(run: Run):
    """The caller's traceparent, tracestate and baggage are not forwarded to the provider."""
    run.provider.clear()
    with run.column.httpx_client({"tracestate": "a=1", "baggage": "user=1"}) as client, mlflow.start_span("step"):
        for path, body in SAID.values():
            with contextlib.suppress(httpx.RemoteProtocolError):
                client.post(path, json=body)
    assert run.provider.requests
    for request in run.provider.requests:
        assert [request.header(name) for name in ("traceparent", "tracestate", "baggage")] == [[], [], []]


def test_client_that_hangs_up(run: Run):
    """If the client closed the connection mid-stream, the mirror is there, ended, and records the disconnect."""
    with run.column.openai_client() as client, open_step() as step:
        stream = client.chat.completions.create(model="long", messages=[USER], stream=True)  # type: ignore[list-item]
        next(stream)
        stream.close()
        # The agent goes on with something else until the gateway has noticed.
        wait_until_noticed(step, run.database)
    trace = mirrored(step)
    (mirror,) = mirrors_in(trace)
    cut_off = "attempt of a client that hangs up" not in run.column.untold
    (attempt,) = assert_mirror(trace, mirror, step, [("openai/gpt-4o-mini-long", "ERROR" if cut_off else "OK")])
    assert mirror.attributes["error.type"] == "client_disconnect"
    assert attempt.attributes.get("error.type") == ("client_disconnect" if cut_off else None)
    assert_told(mirror.attributes, {"http.response.status_code": 200})
    assert not trace.info.token_usage
    if run.column.has_own_traces:
        assert assert_linked(mirror).info.state == "ERROR"


async def _ask(column: Column, client: Any, number: int) -> Span:
    """Make a call; every fifth call falls back, and every second one is a stream, if streams fall back."""
    with mlflow.start_span(f"call {number}") as span:
        model, is_stream = ("chat" if number % 5 else "fallback"), number % 2 == 0
        options = STREAM if is_stream and (model == "chat" or column.streams_fall_back) else {}
        answer = await client.chat.completions.create(model=model, messages=[USER], **options)
        if options:
            async for _ in answer:
                pass
    return span


def _ask_at_once(run: Run, count: int, *, in_one_trace: bool) -> list[Span]:
    async def ask() -> list[Span]:
        async with run.column.async_openai_client() as client:
            with mlflow.start_span("fan out") if in_one_trace else contextlib.nullcontext():
                return await asyncio.gather(*(_ask(run.column, client, number) for number in range(count)))

    return asyncio.run(ask())


def test_many_calls_of_one_trace(run: Run):
    """50 concurrent calls in one trace have 50 mirrors, each below its own call's span with its own attempts."""
    steps = _ask_at_once(run, 50, in_one_trace=True)
    trace = mirrored(steps[0], len(steps))
    by_parent = {mirror.parent_id: mirror for mirror in mirrors_in(trace)}
    assert len(mirrors_in(trace)) == len(by_parent) == len(steps)
    is_within = "end" not in run.column.untold
    for number, step in enumerate(steps):
        assert_mirror(trace, by_parent[step.span_id], step, MINI if number % 5 else FELL_BACK, is_within=is_within)
    used = [span.attributes.get("mlflow.chat.tokenUsage") for span in trace.data.spans]
    assert [usage["input_tokens"] for usage in used if usage] == [3] * len(steps)
    if run.column.has_own_traces:
        assert len({mirror.attributes["mlflow.gateway.linkedTraceId"] for mirror in by_parent.values()}) == len(steps)


def test_many_traces_at_once(run: Run):
    """20 concurrent traces have one mirror each, all in their own traces."""
    steps = _ask_at_once(run, 20, in_one_trace=False)
    assert len({step.trace_id for step in steps}) == len(steps)
    for number, step in enumerate(steps):
        trace = mirrored(step)
        (mirror,) = mirrors_in(trace)
        attempts = MINI if number % 5 else FELL_BACK
        assert_mirror(trace, mirror, step, attempts, is_within="end" not in run.column.untold)


def _send(column: Column, lines: list[tuple[str, str]]) -> str:
    """Send a call with these header lines; returns the id that its trace would have."""
    trace_id, url = begun(secrets.token_hex(16)), urlsplit(column.url)
    body = json.dumps({"model": "chat", **CHAT}).encode()
    connection = http.client.HTTPConnection(url.netloc, timeout=60)
    connection.putrequest("POST", f"{url.path}/chat/completions")
    own = {"authorization": f"Bearer {column.key}", "content-type": "application/json", "content-length": len(body)}
    for name, value in own.items():
        connection.putheader(name, str(value))
    for name, value in lines:
        connection.putheader(name, value.format(t=trace_id, s=secrets.token_hex(8)))
    connection.endheaders(body)
    answer = connection.getresponse()
    assert answer.status == 200
    answer.read()
    connection.close()
    return f"tr-{trace_id}"


def test_no_mirror_without_a_parent(run: Run):
    """A mirror is made if and only if there is exactly one valid, sampled parent; the request is always served."""
    before = run.database.mirror_count()
    sent = {name: _send(run.column, case.headers) for name, case in CASES.items()}
    expected = {
        name: case.mirrored or (run.column.reads_one_line and name.startswith("twice")) for name, case in CASES.items()
    }
    for name, trace_id in sent.items():
        if expected[name]:
            wait_for(f"the mirror of {name}", lambda trace_id=trace_id: run.database.spans(trace_id))
    # The last request is mirrored, so no other mirror is still to come in any trace.
    assert {name: bool(run.database.spans(trace_id)) for name, trace_id in sent.items()} == expected
    assert run.database.mirror_count() - before == sum(expected.values())


def test_adding_a_gateway_takes_one_short_class():
    """The made-up gateway is one class of under 40 lines."""
    assert len(inspect.getsource(MadeUpGateway).splitlines()) < 40
