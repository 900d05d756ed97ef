"""Which requests are mirrored: what a traceparent on the wire has to be."""

import http.client
import json
import secrets
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from e2e_support import USER, Database, wait_for

from agent_gateway_client.demo.gateway import DemoGateway

BODY = json.dumps({"model": "chat", "messages": [USER]}).encode()


class Case(NamedTuple):
    """Header lines of a request, with ``{t}`` for the trace's id and ``{s}`` for the span's, and if it is mirrored."""

    headers: list[tuple[str, str]]
    mirrored: bool


MANY = ",".join(f"k{number}=1" for number in range(33))
LONG = ",".join(f"k{number}={'v' * 256}" for number in range(32))
RIGHT = "00-{t}-{s}-01"
CASES = {
    "right": Case([("traceparent", RIGHT)], True),
    "in capitals": Case([("TRACEPARENT", RIGHT)], True),
    "in mixed case": Case([("TraceParent", RIGHT)], True),
    "with the random flag": Case([("traceparent", "00-{t}-{s}-03")], True),
    "of a later version": Case([("traceparent", "01-{t}-{s}-01-later")], True),
    "with a tracestate": Case([("traceparent", RIGHT), ("tracestate", "a=1"), ("tracestate", "b=2")], True),
    "none": Case([], False),
    "unsampled": Case([("traceparent", "00-{t}-{s}-00")], False),
    "unsampled, random": Case([("traceparent", "00-{t}-{s}-02")], False),
    "empty": Case([("traceparent", "")], False),
    "text": Case([("traceparent", "{t}")], False),
    "span of zeros": Case([("traceparent", "00-{t}-0000000000000000-01")], False),
    "trace of zeros": Case([("traceparent", "00-00000000000000000000000000000000-{s}-01")], False),
    "version ff": Case([("traceparent", "ff-{t}-{s}-01")], False),
    "too long": Case([("traceparent", "00-{t}-{s}-01-more")], False),
    "no hexadecimal": Case([("traceparent", "00-{t}-{s}-0g")], False),
    "twice": Case([("traceparent", RIGHT), ("traceparent", RIGHT)], False),
    "twice, different case": Case([("traceparent", RIGHT), ("TRACEPARENT", RIGHT)], False),
    "oversized": Case([("traceparent", "00-{t}-{s}-01" + "0" * 5000)], False),
    "invalid tracestate": Case([("traceparent", RIGHT), ("tracestate", "no member")], False),
    "duplicated tracestate key": Case([("traceparent", RIGHT), ("tracestate", "a=1,a=2")], False),
    "too many tracestate members": Case([("traceparent", RIGHT), ("tracestate", MANY)], False),
    "oversized tracestate": Case([("traceparent", RIGHT), ("tracestate", LONG)], False),
}


class Sent(NamedTuple):
    """A request that was sent, and its answer."""

    trace_id: str
    status: int
    body: bytes


@dataclass
class Requests:
    """The requests of all cases, and how many mirrors there were more after them than before."""

    sent: dict[str, Sent]
    mirrors: int


def send(gateway: DemoGateway, headers: list[tuple[str, str]], trace_id: str, span_id: str) -> Sent:
    """Send a call with header lines as they are: their case and their number reach the wire."""
    connection = http.client.HTTPConnection(urlsplit(gateway.tracking_uri).netloc, timeout=60)
    connection.putrequest("POST", "/gateway/openai/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(BODY)))
    for name, value in headers:
        connection.putheader(name, value.format(t=trace_id, s=span_id))
    connection.endheaders(BODY)
    answer = connection.getresponse()
    sent = Sent(trace_id, answer.status, answer.read())
    connection.close()
    return sent


def mirrors_so_far(gateway: DemoGateway, database: Database) -> int:
    """Return how many mirrors there are, when none of an earlier call is still to come; makes one itself."""
    # The exporter sends in order: when this call's mirror is there, so are all of those before it.
    last = send(gateway, CASES["right"].headers, secrets.token_hex(16), secrets.token_hex(8))
    wait_for("the last mirror", lambda: database.spans(f"tr-{last.trace_id}"))
    return database.mirror_count()


@pytest.fixture(scope="module")
def requests(gateway: DemoGateway, database: Database) -> Requests:
    """A request of each case, each with a trace id of its own, one after the other."""
    before = mirrors_so_far(gateway, database)
    sent = {
        name: send(gateway, case.headers, secrets.token_hex(16), secrets.token_hex(8)) for name, case in CASES.items()
    }
    return Requests(sent, mirrors_so_far(gateway, database) - before - 1)


each_case = pytest.mark.parametrize("name", CASES)


@each_case
def test_only_a_valid_sampled_parent_is_mirrored(name: str, requests: Requests, database: Database):
    """A mirror is made if and only if the request names exactly one valid, sampled parent; it is served in any case."""
    sent = requests.sent[name]
    spans = [span["name"] for span in database.spans(f"tr-{sent.trace_id}")]
    assert spans == ["gateway/chat", "provider/openai/gpt-4o-mini"] * CASES[name].mirrored
    assert sent.status == 200


def test_nothing_is_mirrored_elsewhere(requests: Requests):
    """There are no more mirrors than requests with a right parent, in whatever trace."""
    assert requests.mirrors == sum(case.mirrored for case in CASES.values())


@each_case
def test_the_answer_does_not_depend_on_it(name: str, requests: Requests):
    """Whatever the trace context is, the answer's bytes are the same as without one."""
    assert requests.sent[name].body == requests.sent["none"].body
