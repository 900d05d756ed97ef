"""Reading data of callers and providers takes time in proportion to its length, whatever the content."""

import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import walk_packages
from re import Pattern
from typing import Any

import pytest

from agent_gateway_client import server, w3c
from agent_gateway_client.server import mirror
from agent_gateway_client.server.reading import json_ends, responses
from agent_gateway_client.server.reading.bodies import KeptBody
from agent_gateway_client.server.reading.json_ends import first_members, last_members
from agent_gateway_client.server.reading.responses import read_requested_model, read_response
from agent_gateway_client.server.routes import is_model_call, model_in_path, route_of

PIECES = [
    *("/deployments/a/", "/models/", "/models/a:b", "a", "a_", "00-", "a=1,", " ", "\n", "\\", '"', '\\"', "{", "["),
    *('"usage"', '"usage":', '"usage":{', '"usage":[', '"model" ', '{"model":"a","b":', '"type" : ', "data: {\n\n"),
]
"""Each text repeats one of these pieces."""
ENDS = ["", "\n"]
SMALL, FACTOR = 2 * 1024, 8

LITTLE_NS = 3_000_000
"""Below this, growth cannot be distinguished from noise; anything quadratic takes seconds."""


SEARCHED = {
    mirror._UNPRINTABLE,
    json_ends._TOKEN,
    json_ends._ESCAPE,
    responses._EVENTS_WITH_FACTS,
    responses._LAST_EVENT,
}
"""Patterns that are searched anywhere in a text, not only at one place."""


def patterns() -> Iterator[Any]:
    for module in [
        w3c,
        *(import_module(found.name) for found in walk_packages(server.__path__, f"{server.__name__}.")),
    ]:
        for name, pattern in vars(module).items():
            if isinstance(pattern, Pattern):
                yield pytest.param(pattern, id=f"{module.__name__.removeprefix('agent_gateway_client.')}.{name}")


def cost_ns(read: Callable[[Any], object], text: Any) -> int:
    """Return the minimum of the thread's time for reading."""

    def once() -> int:
        begun = time.thread_time_ns()
        read(text)
        return time.thread_time_ns() - begun

    return min(once() for _ in range(2))


def assert_linear(read: Callable[[Any], object], text_of: Callable[[str], Any] = str) -> None:
    for piece in PIECES:
        for end in ENDS:
            small, large = (text_of((piece * size)[:size] + end) for size in (SMALL, SMALL * FACTOR))
            if cost_ns(read, large) > LITTLE_NS:
                # Linear growth gives a factor of 8, quadratic growth 64. A processor that slows down in between can
                # only make linear growth look quadratic, so the best of several looks counts.
                factors = (cost_ns(read, large) / cost_ns(read, small) for _ in range(5))
                assert any(factor < 24 for factor in factors), (piece, end)


@pytest.mark.parametrize("pattern", list(patterns()))
def test_a_pattern(pattern: Pattern[Any]):
    """No pattern rescans text again and again."""
    read = pattern.search if pattern in SEARCHED else pattern.match
    assert_linear(read, str.encode if isinstance(pattern.pattern, bytes) else str)


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "route_of": route_of,
    "model_in_path": model_in_path,
    "is_model_call": lambda path: is_model_call({"method": "POST", "path": path}),
    "extract": lambda text: w3c.extract({"traceparent": text, "tracestate": text}),
    "tracestate": lambda text: w3c.extract({"traceparent": f"00-{1:032x}-{1:016x}-01", "tracestate": text}),
    "first_members": lambda text: first_members(text, {"usage", "model"}),
    "last_members": lambda text: last_members(text, {"usage", "model"}),
    "read_requested_model": lambda text: read_requested_model(kept(text)),
    "read_response": lambda text: read_response(kept(text), streaming=False),
    "read_response of a stream": lambda text: read_response(kept(text), streaming=True),
}


def kept(text: str) -> KeptBody:
    body = KeptBody()
    body.add(text.encode())
    return body


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name: str):
    """No function does either."""
    assert_linear(FUNCTIONS[name])
