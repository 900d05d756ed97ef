"""The service of W3C's harness, by cases of our own: what goes in as a header comes out as W3C Trace Context says.

W3C's own tests are run by ``python tests/w3c/run.py``; see there.
"""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import mlflow
import pytest

from agent_gateway_client.server.export import Exporter
from tests.support.http_server import HttpServer
from tests.support.mlflow_database import database_in
from tests.support.served import Served
from tests.support.server import DEADLINE_S, MemoryDestination, ids_of
from tests.w3c.service import make_service

T, S = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
P = f"00-{T}-{S}-01"
MANY = ",".join(f"k{number}=1" for number in range(32))
Lines = list[tuple[str, str]]


class Case(NamedTuple):
    """A request's header lines, and what the service sends on for them.

    Attributes:
        lines: The lines.
        flags: The flags of the received trace, which is continued; ``None`` where a new one has to be begun.
        tracestate: What is relayed.
        mirrored: Whether the received trace gets a mirror.
    """

    lines: Lines
    flags: str | None
    tracestate: str = ""
    mirrored: bool = False


def state(*lines: str, flags: str = "01") -> Lines:
    """Return the lines of a good traceparent and of a tracestate."""
    return [("traceparent", f"00-{T}-{S}-{flags}"), *(("tracestate", line) for line in lines)]


CASES = {
    "sampled": Case([("traceparent", P)], "01", mirrored=True),
    "not sampled": Case(state(flags="00"), "00"),
    "random": Case(state(flags="02"), "02"),
    "sampled and random": Case(state(flags="03"), "03", mirrored=True),
    "flags of the future": Case(state(flags="f9"), "f9", mirrored=True),
    "version of the future": Case([("traceparent", f"cc-{T}-{S}-01-more")], "01", mirrored=True),
    "name in capitals": Case([("TRACEPARENT", P), ("TraceState", "a=1")], "01", "a=1", mirrored=True),
    "white space": Case([("traceparent", f" \t{P} \t"), ("tracestate", "\ta=1 ")], "01", "a=1", mirrored=True),
    "nothing": Case([], None),
    "only a tracestate": Case([("tracestate", "a=1")], None),
    "another name": Case([("trace-parent", P)], None),
    "two lines": Case([("traceparent", P), ("traceparent", P.replace("-01", "-00"))], None),
    "two lines alike": Case([("traceparent", P), ("Traceparent", P)], None),
    "two in a line": Case([("traceparent", f"{P},{P}")], None),
    "version ff": Case([("traceparent", f"ff-{T}-{S}-01")], None),
    "version 00 with more": Case([("traceparent", f"{P}-more")], None),
    "capitals": Case([("traceparent", P.upper())], None),
    "no trace": Case([("traceparent", f"00-{'0' * 32}-{S}-01")], None),
    "no span": Case([("traceparent", f"00-{T}-{'0' * 16}-01")], None),
    "too short": Case([("traceparent", P[:-1])], None),
    "several state lines": Case(state("a=1,b=2", "", "c=3"), "01", "a=1,b=2,c=3", mirrored=True),
    "keys with signs": Case(state("a@@b=1,c@d@e=2,0/*-_=3"), "01", "a@@b=1,c@d@e=2,0/*-_=3", mirrored=True),
    "32 members": Case(state(MANY), "01", MANY, mirrored=True),
    "33 members": Case(state(MANY, "k33=1"), "01", mirrored=True),
    "a key of 257": Case(state("a=1," + "k" * 257 + "=1"), "01", mirrored=True),
    "a value of 257": Case(state("a=1,k=" + "v" * 257), "01", mirrored=True),
    "more than 8 KB": Case(state(*[f"k{n}=" + "v" * 256 for n in range(32)]), "01", mirrored=True),
    "a key twice": Case(state("a=1,b=2", "a=3"), "01", "a=1,b=2", mirrored=True),
    "a key in capitals": Case(state("a=1,B=2"), "01", mirrored=True),
    "a key with @ first": Case(state("@a=1,b=2"), "01", mirrored=True),
    "no value": Case(state("a=,b=2"), "01", mirrored=True),
    "a second equals sign": Case(state("a=b=c"), "01", mirrored=True),
}


@pytest.fixture(scope="module")
def mirrors() -> MemoryDestination:
    return MemoryDestination()


@pytest.fixture(scope="module")
def harness() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server


@pytest.fixture(scope="module")
def exporter(mirrors: MemoryDestination) -> Exporter:
    return Exporter(mirrors)


@pytest.fixture(scope="module")
def service(exporter: Exporter, harness: HttpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the service; its own spans go nowhere that anybody looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
        mlflow.set_tracking_uri(database_in(tmp_path_factory.mktemp("w3c")))
        mlflow.set_experiment("w3c")
        with Served(make_service(exporter, [harness.gateway])) as url:
            yield f"{url}/test"
        mlflow.set_tracking_uri(None)
        mlflow.tracing.reset()


def post(url: str, lines: Lines, body: bytes) -> int:
    """Send a request with these header lines as they are, which most clients do not; return the status."""
    parts = urlsplit(url)
    with closing(HTTPConnection(parts.netloc, timeout=DEADLINE_S)) as connection:
        connection.putrequest("POST", parts.path)
        for name, value in [*lines, ("content-length", str(len(body)))]:
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse().status


@pytest.mark.parametrize("name", CASES)
def test_what_is_sent_on(name: str, service: str, harness: HttpServer, mirrors: MemoryDestination, exporter: Exporter):
    """Each request of the service continues the received trace, or a new one, below a span of its own."""
    case = CASES[name]
    harness.requests.clear()
    mirrors.batches.clear()
    actions: Any = [{"url": harness.gateway, "arguments": []}] * 2
    assert post(service, case.lines, json.dumps(actions).encode()) == 200

    sent = [re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", *parents) for parents in harness.sent()]
    assert len(sent) == 2
    assert all(sent)
    parents = {match[2] for match in sent if match}
    assert len(parents | {S, "0" * 16}) == 4, "each request has a parent of its own"
    for match in filter(None, sent):
        if case.flags is None:
            assert match[1] not in (T, "0" * 32)
        else:
            assert (match[1], match[3]) == (T, case.flags)
    assert harness.sent("tracestate") == [[case.tracestate] if case.tracestate else []] * 2

    assert exporter.flush(DEADLINE_S)
    gateways = [span for span in mirrors.spans if span.name == "gateway/w3c"]
    assert [ids_of(span)[1] for span in gateways] == ([int(S, 16)] if case.mirrored else [])
    if case.mirrored:
        assert parents == {f"{ids_of(span)[0]:016x}" for span in mirrors.spans if span.name == "provider"}
