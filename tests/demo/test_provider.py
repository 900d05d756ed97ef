"""provider.py: starting, stopping, recording, failing, and streams that break, are slow or long."""

import socket
import time
from typing import Any

import httpx
import openai
import pytest

from agent_gateway_client.demo import provider as provider_module
from agent_gateway_client.demo.provider import Provider
from agent_gateway_client.errors import StartError

PROMPT = "the canary sings at dawn"
CHAT: Any = [{"role": "user", "content": PROMPT}]


def test_providers_do_not_meet_on_a_port():
    with Provider() as one, Provider() as two:
        assert one.url != two.url
        assert [httpx.get(f"{each.url}/_requests").status_code for each in (one, two)] == [200, 200]


def test_a_port_that_is_taken_is_refused_by_name():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"Port {port} "):
            Provider(port).start()


def test_a_stopped_provider_leaves_its_port():
    """Stopping twice is the same as once, and the port can be used again at once."""
    provider = Provider().start()
    port = int(provider.url.rpartition(":")[2])
    provider.stop()
    provider.stop()
    with pytest.raises(StartError, match="not running"):
        _ = provider.url
    with Provider(port) as again:
        assert httpx.get(f"{again.url}/_requests").status_code == 200


def test_requests_are_recorded_as_they_came(provider: Provider, http: httpx.Client):
    """Order, query, body, and both of two headers of one name; its own routes are left out."""
    headers = [("X-Twice", "1"), ("x-twice", "2"), ("Content-Type", "application/json")]
    http.post("/v1/embeddings?a=b", content=b'{"input": "x"}', headers=headers)
    http.post("/v1/nowhere", content=b"no json")
    first, second = provider.requests
    assert (first.method, first.path, first.query, first.body) == ("POST", "/v1/embeddings", "a=b", {"input": "x"})
    assert first.header("X-TWICE") == ["1", "2"]
    assert (second.path, second.body) == ("/v1/nowhere", None)

    listed = http.get("/_requests").json()
    assert [entry["path"] for entry in listed] == ["/v1/embeddings", "/v1/nowhere"]
    assert [value for name, value in listed[0]["headers"] if name == "x-twice"] == ["1", "2"]
    http.delete("/_requests")
    assert provider.requests == []


def test_only_the_last_requests_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provider_module, "MAX_RECORDED", 2)
    with Provider() as provider:
        for number in range(3):
            httpx.get(f"{provider.url}/v1/nowhere?{number}")
        assert [request.query for request in provider.requests] == ["1", "2"]


@pytest.mark.parametrize("status", [401, 429, 500])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": CHAT}),
        ("/v1/chat/completions", {"messages": CHAT, "stream": True}),
        ("/v1/completions", {"prompt": PROMPT}),
        ("/v1/responses", {"input": PROMPT}),
        ("/v1/embeddings", {"input": [PROMPT]}),
        ("/v1/moderations", {"input": PROMPT}),
        ("/v1/images/generations", {"prompt": PROMPT}),
        ("/v1/audio/speech", {"input": PROMPT}),
        ("/v1/messages", {"messages": CHAT}),
        ("/v1beta/models/fail-{}:generateContent", {"contents": [{"parts": [{"text": PROMPT}]}]}),
    ],
)
def test_an_error_repeats_the_prompt(http: httpx.Client, path: str, body: dict[str, Any], status: int):
    """In the API's own error object, under `error.message`, as clients read it."""
    response = http.post(path.format(status), json={"model": f"gpt-4o-fail-{status}", **body})
    assert response.status_code == status
    assert PROMPT in response.json()["error"]["message"]


def test_errors_are_the_sdks_own(client: openai.OpenAI):
    for status, kind in ((401, openai.AuthenticationError), (429, openai.RateLimitError)):
        with pytest.raises(kind, match=PROMPT):
            client.chat.completions.create(model=f"fail-{status}", messages=CHAT)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/completions"])
def test_a_broken_stream_ends_in_the_middle(http: httpx.Client, path: str, caplog: pytest.LogCaptureFixture):
    """The connection is closed after some pieces, and before the end; nothing is logged about it."""
    body = {"model": "broken", "stream": True, "messages": CHAT, "prompt": PROMPT}
    received = b""
    with http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - what came before the break counts
            for chunk in response.iter_raw():
                received += chunk
    assert b"You " in received
    assert b"dawn" not in received
    assert not caplog.records


def test_a_slow_model_waits(client: openai.OpenAI):
    began = time.monotonic()
    client.chat.completions.create(model="slow-200", messages=CHAT)
    assert time.monotonic() - began >= 0.2


def test_a_client_may_hang_up_on_a_long_stream(client: openai.OpenAI):
    """After the first piece of five seconds of them; the provider goes on to serve others."""
    stream = client.chat.completions.create(model="long", messages=CHAT, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model="gpt-4o-mini", messages=CHAT).choices


def test_a_long_stream_has_as_many_pieces_as_asked(client: openai.OpenAI):
    chunks = list(client.chat.completions.create(model="long-9", messages=CHAT, stream=True))
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == 9
