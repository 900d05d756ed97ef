"""Many calls at once: each mirror is under its own caller's span."""

import asyncio

import mlflow
import pytest
from e2e_support import USER, assert_linked, assert_mirror, async_openai_client, mirrored, mirrors_in
from mlflow.entities import Span

from agent_gateway_client.demo.gateway import DemoGateway

MINI = [("openai/gpt-4o-mini", "OK")]
CALLS = 50
TRACES = 20


@pytest.fixture(scope="module")
def steps(gateway: DemoGateway, tracing: str) -> tuple[list[Span], list[Span]]:
    """The callers' spans of 50 concurrent calls under one trace, and of 20 traces at once."""

    async def run() -> tuple[list[Span], list[Span]]:
        async with async_openai_client(gateway) as client:

            async def call(name: str) -> Span:
                with mlflow.start_span(name) as span:
                    await client.chat.completions.create(model="chat", messages=[USER], user=name)
                return span

            with mlflow.start_span("fan out"):
                fan = await asyncio.gather(*(call(f"call {number}") for number in range(CALLS)))
            traces = await asyncio.gather(*(call(f"trace {number}") for number in range(TRACES)))
        return fan, traces

    return asyncio.run(run())


def test_an_agent_that_fans_out(steps: tuple[list[Span], list[Span]]):
    """50 concurrent calls under one trace are 50 mirrors, each under its own call's span, and 50 linked traces."""
    callers = steps[0]
    trace = mirrored(callers[0], CALLS)
    by_parent = {mirror.parent_id: mirror for mirror in mirrors_in(trace)}
    assert len(mirrors_in(trace)) == CALLS
    assert set(by_parent) == {caller.span_id for caller in callers}
    for caller in callers:
        assert_mirror(trace, by_parent[caller.span_id], caller, MINI)
    links = {mirror.attributes["mlflow.gateway.linkedTraceId"] for mirror in by_parent.values()}
    assert len(links) == CALLS
    for mirror in by_parent.values():
        assert_linked(mirror)
    assert trace.info.token_usage is not None
    assert trace.info.token_usage["input_tokens"] == CALLS * 3


def test_many_agents_at_once(steps: tuple[list[Span], list[Span]]):
    """20 traces at once have one mirror each, none of which got into another's trace."""
    callers = steps[1]
    assert len({caller.trace_id for caller in callers}) == TRACES
    for caller in callers:
        trace = mirrored(caller)
        (mirror,) = mirrors_in(trace)
        assert_mirror(trace, mirror, caller, MINI)
        assert_linked(mirror)
        assert trace.info.token_usage is not None
        assert trace.info.token_usage["input_tokens"] == 3
