"""No payload gets into the caller's trace: canaries in everything that a caller, a provider or an error contains.

The exact bytes that leave the exporter are searched, over OTLP and on the way to an MLflow server, with 10,000
examples each if NIGHTLY is set.
"""

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from agent_gateway_client.server import (
    GatewayTracingMiddleware,
    GatewayTracingWSGIMiddleware,
    current_gateway_call,
    gateway_attempt,
    gateway_call,
)
from agent_gateway_client.server import mirror as mirror_module
from agent_gateway_client.server._gateway_call import add_response
from agent_gateway_client.server.export import Exporter, sender
from agent_gateway_client.server.export.environment import exporter_from_environment
from tests.support.asgi import Client, http_scope
from tests.support.canaries import (
    CANARY,
    EXAMPLES,
    FIELDS,
    HEADERS,
    LEAK,
    AllFound,
    Answer,
    Question,
    answers,
    body_of,
    found_leaks,
    headers_of,
    questions,
    search,
    sentences,
    texts,
    words,
)
from tests.support.otlp_receiver import Receiver
from tests.support.server import DEADLINE_S


@pytest.fixture(scope="module", autouse=True)
def no_pauses() -> Iterator[None]:
    """As in the companion's other tests, for fixtures that outlive a test."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sender, "BATCH_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module", params=["mlflow", "otlp"])
def sent(request: pytest.FixtureRequest) -> Iterator[tuple[Exporter, Receiver]]:
    """An exporter, and the bytes it sends."""
    with Receiver() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENT_GATEWAY_EXPORTER", request.param)
        patch.setenv("MLFLOW_TRACKING_URI", receiver.url)
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield exporter_from_environment(), receiver


class Failed(Exception):
    """An application's own error."""


def _chained(text: str) -> Exception:
    error = Failed(text, {text: text})
    error.__cause__ = ValueError(text)
    if hasattr(error, "add_note"):
        error.add_note(text)
    return error


failures = st.one_of(
    st.builds(Failed, texts),
    st.builds(lambda text: HTTPException(502, detail=text, headers={"x-error": text}), texts),
    st.builds(lambda text: OSError(5, text, text), texts),
    st.builds(_chained, texts),
    st.builds(lambda text: UnicodeDecodeError("utf-8", text.encode("utf-8", "replace"), 0, 1, text), texts),
)
error_texts = st.none() | failures | sentences
attempts = st.lists(st.tuples(st.sampled_from(["openai", "anthropic"]), error_texts), max_size=3)

Serve = Callable[[Exporter, Question, Answer, Any, Any], None]


def by_middleware(exporter: Exporter, question: Question, answer: Answer, tried: Any, failure: Any) -> None:
    """Serve a request through the ASGI middleware; the application may fail midway."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        call = current_gateway_call()
        assert call is not None
        # Requests that it rejects are mirrored too.
        call.caller_is_known = True
        for provider, error in tried:
            attempt = gateway_attempt(provider=provider, model="configured")
            attempt.end(error)
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        for chunk in answer.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if failure is not None:
            raise failure
        await send({"type": "http.response.body", "body": b""})

    asked = False

    async def receive() -> Any:
        nonlocal asked
        asked = True
        return {"type": "http.request", "body": body_of(question), "more_body": False}

    path = _path(question)
    lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers_of(question)]
    scope = http_scope(lines, path=path, raw_path=path.encode(), query_string=f"key={question.query}".encode())
    middleware = GatewayTracingMiddleware(app, exporter)
    try:
        asyncio.run(middleware(scope, receive, Client().send))
    except Exception as error:
        if error is not failure:
            raise
    assert asked


def _path(question: Question) -> str:
    if question.query.endswith("0"):
        return f"/v1beta/models/{CANARY} {question.query}:generateContent"
    return f"/{question.query}/v1/chat/completions"


def by_hand(exporter: Exporter, question: Question, answer: Answer, tried: Any, failure: Any) -> None:
    """Serve a request inside gateway_call()."""
    try:
        with gateway_call(headers_of(question), endpoint="chat", exporter=exporter) as call:
            for provider, error in tried:
                with call.attempt(provider=provider, model="configured") as attempt:
                    attempt.end(error)
            add_response(call, answer.chunks, streaming=("content-type", "text/event-stream") in answer.headers)
            call.http_status = answer.status
            if failure is not None:
                raise failure
    except Exception as error:
        if error is not failure:
            raise


def by_wsgi_middleware(exporter: Exporter, question: Question, answer: Answer, tried: Any, failure: Any) -> None:
    """Serve a request through the WSGI middleware."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ["wsgi.input"].read()
        call = current_gateway_call()
        assert call is not None
        call.caller_is_known = True
        for provider, error in tried:
            gateway_attempt(provider=provider, model="configured").end(error)
        start_response(f"{answer.status} {CANARY}", answer.headers)
        yield from answer.chunks
        if failure is not None:
            raise failure

    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": _path(question),
        "QUERY_STRING": f"key={question.query}",
        "SERVER_NAME": "gateway",
        "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(body_of(question)),
    }
    for name, value in headers_of(question):
        variable = f"HTTP_{name.upper().replace('-', '_')}"
        # A server joins header lines with the same name.
        environ[variable] = f"{environ[variable]},{value}" if variable in environ else value
    try:
        response = GatewayTracingWSGIMiddleware(app, exporter)(environ, lambda *started: None)
        list(response)
        response.close()
    except Exception as error:
        if error is not failure:
            raise


gateways = pytest.mark.parametrize("serve", [by_middleware, by_wsgi_middleware, by_hand])
examples = given(questions(["chat", "gpt-4o"]), answers, attempts, st.none() | failures)


@gateways
def test_no_payload_leaves(serve: Serve, sent: tuple[Exporter, Receiver], logged: pytest.LogCaptureFixture):
    """Each call is mirrored, and neither its mirror's bytes nor the log contain a canary."""
    exporter, receiver = sent

    @EXAMPLES
    @examples
    def check(question: Question, answer: Answer, tried: Any, failure: Any) -> None:
        serve(exporter, question, answer, tried, failure)
        assert exporter.flush(DEADLINE_S)
        assert search(receiver) == 1

    check()
    assert CANARY not in logged.text
    assert exporter.dropped == 0


def _asked(name: str) -> Callable[[Any], str | None]:
    """Return a leak of a member of the request's body."""

    def leak(call: Any) -> str | None:
        body = _seen[-1].body
        return str(body[name]) if isinstance(body, dict) and name in body else None

    return leak


def _sent(header: str) -> Callable[[Any], str | None]:
    """Return a leak of a header."""
    return lambda call: next((value for name, value in _seen[-1].headers if name == header), None)


LEAKS: dict[str, Callable[[Any], str | None]] = {
    "what was asked": lambda call: str(_seen[-1]),
    "message of an error": lambda call: next((str(error) for error in _seen if isinstance(error, Exception)), None),
    **{name: _asked(name) for name in FIELDS},
    **{name: _sent(name) for name in HEADERS},
}
"""Plausible leaks: what a careless fact of the mirror would be read from."""
_seen: list[Any] = []


@gateways
@pytest.mark.parametrize("sent", ["otlp"], indirect=True)
def test_planted_leaks_are_found(serve: Serve, sent: tuple[Exporter, Receiver], monkeypatch: Any):
    """With careless facts in the mirror, the same examples and the same search find each leak."""
    exporter, receiver = sent
    call_facts = mirror_module._call_facts
    missing = set(LEAKS)

    def leaking_facts(call: Any) -> Any:
        yield from call_facts(call)
        for name in missing:
            yield LEAK + name, LEAK + name, mirror_module._name(LEAKS[name](call))

    monkeypatch.setattr(mirror_module, "_call_facts", leaking_facts)

    # Not every request has the member that leaks.
    @settings(EXAMPLES, phases=[Phase.generate], max_examples=2_000)
    @examples
    def check(question: Question, answer: Answer, tried: Any, failure: Any) -> None:
        if not missing:
            raise AllFound
        _seen[:] = [failure, question]
        serve(exporter, question, answer, tried, failure)
        assert exporter.flush(DEADLINE_S)
        missing.difference_update(found_leaks(receiver))

    with suppress(AllFound):
        check()
    assert missing == set()


@given(st.one_of(words, sentences))
def test_every_canary_text_would_be_found(text: str):
    """Cut to the length of a mirrored name, each text of the examples still contains the canary."""
    assert CANARY in (mirror_module._name(text) or "")
