"""asgi.py: random header sets (100,000 with NIGHTLY), checked against an independent parser of W3C's grammar."""

import random
import string
from collections.abc import Callable
from typing import Any

import pytest

from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.export import Exporter
from tests.support.asgi import http_scope
from tests.support.nightly import amount
from tests.support.server import DEADLINE_S, MemoryDestination, ids_of

SETS = amount(5_000, 100_000)
Headers = list[tuple[bytes, bytes]]
HEX = "0123456789abcdef"
KEY_STARTS, KEY_CHARACTERS = string.ascii_lowercase + string.digits, string.ascii_lowercase + string.digits + "_-*/@"
VALUE_CHARACTERS = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(HEX, k=count))


def good_parent(rng: random.Random) -> str:
    version = rng.choice(["00", "00", "00", "01", "cc", "fe"])
    more = "-" + digits(rng, rng.randrange(9)) if version != "00" and rng.random() < 0.3 else ""
    trace, span = digits(rng, 32), digits(rng, 16)
    if rng.random() < 0.02:
        trace = "0" * 32
    if rng.random() < 0.02:
        span = "0" * 16
    return f"{version}-{trace}-{span}-{rng.choice(['00', '01', '01', '02', '03', digits(rng, 2)])}{more}"


def good_state(rng: random.Random) -> str:
    members = []
    for _ in range(rng.choice([1, 1, 2, 3, 20, 40])):
        key = rng.choice(KEY_STARTS) + "".join(rng.choices(KEY_CHARACTERS, k=rng.choice([0, 1, 5, 30, 255, 256])))
        value = "".join(rng.choices(VALUE_CHARACTERS, k=rng.choice([0, 1, 5, 255, 256]))) + rng.choice("!~a")
        members.append(f"{key}={value}")
    if rng.random() < 0.1:
        members.append(rng.choice(members))
    return rng.choice([",", ", ", "\t,", ",,"]).join(members)


def spoil(rng: random.Random, text: str) -> str:
    """Change, add or remove a few characters."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(text) + 1)
        new = rng.choice(["", "-", ",", "=", "0", "f", "g", "A", " ", "\t", "\n", "\x00", "\xff", ".", "00", text])
        text = text[:at] + new + text[at + rng.randrange(3) :]
    return text[:9_000]


def junk(rng: random.Random) -> str:
    return rng.randbytes(rng.choice([0, 1, 2, 55, 100])).decode("latin-1")


def value(rng: random.Random, good: Callable[[random.Random], str]) -> bytes:
    kind = rng.random()
    text = good(rng) if kind < 0.6 else spoil(rng, good(rng)) if kind < 0.9 else junk(rng)
    return text.encode("latin-1")


def in_some_case(rng: random.Random, name: str) -> bytes:
    return rng.choice(
        [name, name, name.upper(), name.title(), "".join(rng.choice([c, c.upper()]) for c in name)]
    ).encode()


def headers(rng: random.Random) -> Headers:
    lines = [
        (in_some_case(rng, "traceparent"), value(rng, good_parent)) for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3]))
    ]
    lines += [(in_some_case(rng, "tracestate"), value(rng, good_state)) for _ in range(rng.choice([0, 0, 0, 1, 1, 2]))]
    lines += [(junk(rng).encode("latin-1"), junk(rng).encode("latin-1")) for _ in range(rng.randrange(3))]
    rng.shuffle(lines)
    return lines


def is_hex(text: str, length: int) -> bool:
    return len(text) == length and set(text) <= set(HEX)


def parent_of(lines: Headers) -> tuple[int, int] | None:
    """Return the ids of a valid and sampled parent."""
    values = [value.decode("latin-1") for name, value in lines if name.lower() == b"traceparent"]
    parts = values[0].strip(" \t").split("-") if len(values) == 1 else []
    if len(parts) < 4 or not all(map(is_hex, parts, (2, 32, 16, 2))):
        return None
    version, trace, span, flags = parts[:4]
    if version == "ff" or (version == "00" and len(parts) > 4) or any("\n" in part for part in parts):
        return None
    ids = int(trace, 16), int(span, 16)
    return ids if all(ids) and int(flags, 16) % 2 else None


async def test_random_sets_of_headers(logged: pytest.LogCaptureFixture):
    """None of them raises, each is served, and exactly those with a valid and sampled parent are mirrored below it."""
    destination = MemoryDestination()
    exporter = Exporter(destination, max_waiting_calls=SETS)
    served = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal served
        served += 1

    async def never(*message: Any) -> Any:
        raise AssertionError("this application neither receives nor sends")

    middleware = GatewayTracingMiddleware(app, exporter)
    rng = random.Random(20260101)
    expected = []
    for _ in range(SETS):
        lines = headers(rng)
        parent = parent_of(lines)
        if parent is not None:
            expected.append(parent)
        await middleware(http_scope(lines), never, never)
    assert exporter.flush(DEADLINE_S)
    assert served == SETS
    mirrored = [(span.context.trace_id, ids_of(span)[1]) for span in destination.spans if span.context]
    assert mirrored == expected
    assert SETS / 20 < len(mirrored) < SETS / 2, "both kinds are common"
    assert logged.messages == []
