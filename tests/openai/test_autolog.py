"""wrap_openai() beside mlflow.openai.autolog(), which sets a traceparent of its own on some methods."""

from typing import Any

import mlflow
import mlflow.openai
import pytest

from agent_gateway_client import instrument, wrap_openai
from tests.support.client import (
    OTHER,
    MemoryExporter,
    Wire,
    isolated,  # noqa: F401
    named_by,
    named_by_otel,
    redirects,
)
from tests.support.openai import CALLS, CLIENTS, answer, make_client

each_client = pytest.mark.parametrize("kind", CLIENTS)

PATCHED = [
    "chat",
    "chat, streamed",
    "chat, raw",
    "chat, parse",
    "chat, stream helper",
    "completions",
    "responses",
    "responses, streamed",
    "responses, parse",
    "embeddings",
    "images",
]
"""What autolog makes a span of."""

NOT_PATCHED = [
    "audio, speech",
    "audio, transcription",
    "files, upload",
    "batches",
    "moderations",
    "models",
    "any path",
]
"""What it does not see."""


def ended(but: str | None = None) -> list[Any]:
    """Return the spans that ended, except those of a name."""
    return [span for span in MemoryExporter.spans.get_finished_spans() if span.name != but]


# Autolog writes parse()'s generic models as JSON, which pydantic warns about; as an error that ends no span.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@each_client
@pytest.mark.parametrize("name", PATCHED)
@pytest.mark.parametrize("first", ["autolog", "wrap"])
async def test_autologs_own_span_stays_named(kind: str, name: str, first: str):
    """Where autolog makes a span for the call, the one header names that span, which is inside the active one."""
    wire = Wire(answer)
    client = make_client(kind, wire)
    if first == "wrap":
        wrap_openai(client)
    mlflow.openai.autolog()
    if first == "autolog":
        wrap_openai(client)
    with mlflow.start_span("agent") as agent:
        await CALLS[name](client)
    (own,) = ended("agent")
    assert f"{own.parent.span_id:016x}" == agent.span_id
    assert wire.sent() == [[named_by_otel(own)]]


@each_client
@pytest.mark.parametrize("name", NOT_PATCHED)
async def test_what_autolog_does_not_see_names_the_active_span(kind: str, name: str):
    """Where autolog makes no span, the header names the active one, as without autolog."""
    wire = Wire(answer)
    mlflow.openai.autolog()
    client = wrap_openai(make_client(kind, wire))
    with mlflow.start_span("agent") as agent:
        await CALLS[name](client)
    assert wire.sent() == [[named_by(agent)]]
    assert ended("agent") == []


@each_client
async def test_autolog_alone_is_enough_of_a_span(kind: str):
    """Without a span of the user's the header names autolog's, and every attempt has it once."""
    failures = [{"status_code": 503, "headers": {"retry-after-ms": "1"}}]
    wire = Wire(lambda request: failures.pop() if failures else answer(request))
    mlflow.openai.autolog()
    await CALLS["chat"](wrap_openai(make_client(kind, wire)))
    (own,) = ended()
    assert wire.sent() == [[named_by_otel(own)]] * 2


@each_client
@pytest.mark.parametrize("how", ["wrap", "instrument", "both"])
@pytest.mark.parametrize("name", ["chat", "chat, streamed", "responses", "embeddings"])
async def test_autologs_header_stays_behind_where_a_redirect_leaves(kind: str, how: str, name: str):
    """The header that autolog set does not go along to another host, and is there again where the way comes back."""
    probe = Wire(answer)
    await CALLS[name](make_client(kind, probe))
    (url,) = probe.urls
    back = f"{url}{'&' if '?' in url else '?'}hop=2"
    hops = redirects({url: OTHER, OTHER: back})
    wire = Wire(lambda request: hops(request) or answer(probe_request(request, url)))
    mlflow.openai.autolog()
    client = make_client(kind, wire)
    if how != "instrument":
        wrap_openai(client)
    with instrument(url.partition("?")[0] if how != "wrap" else "http://unused.test"), mlflow.start_span("agent"):
        await CALLS[name](client)
    (own,) = ended("agent")
    assert wire.urls == [url, OTHER, back]
    assert wire.sent() == [[named_by_otel(own)], [], [named_by_otel(own)]]


def probe_request(request: Any, url: str) -> Any:
    """Return the request as if it had gone to the URL at the start of the redirects."""
    request.url = type(request.url)(url)
    return request
