"""wsgi.py under Django, if it is installed: its views and streams, its handler, its signals."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import Client

from agent_gateway_client.server import (
    GatewayTracingWSGIMiddleware,
    current_gateway_call,
    gateway_attempt,
    gateway_call,
)
from tests.support.asgi import Mirrors
from tests.support.middleware import REQUEST, spans_of
from tests.support.server import PARENT, TRACEPARENT, ids_of
from tests.support.wire_samples import CANARY, CHAT, SAMPLES

django = pytest.importorskip("django", reason="django is not in this environment's constraints file")

from django.conf import settings  # noqa: E402

if not settings.configured:
    settings.configure(
        ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of the tests", LOGGING_CONFIG=None, INSTALLED_APPS=[]
    )
    django.setup()

from django.core.signals import request_finished  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

CHUNKS = list(SAMPLES["chat stream"].chunks)


def plain(request: HttpRequest) -> HttpResponse:
    assert json.loads(request.body) == REQUEST
    return HttpResponse(SAMPLES["chat"].body, content_type="application/json")


def streamed(request: HttpRequest) -> StreamingHttpResponse:
    def chunks() -> Iterator[bytes]:
        call = current_gateway_call()
        assert call is not None
        call.endpoint = "ours"
        with gateway_attempt("openai", "m"):
            yield from CHUNKS

    return StreamingHttpResponse(chunks(), content_type="text/event-stream")


def failing(request: HttpRequest) -> HttpResponse:
    gateway_attempt("openai", "m").end("503")
    raise ValueError(CANARY)


def by_hand(request: HttpRequest) -> HttpResponse:
    with gateway_call(request.headers, endpoint="hand", exporter=_exporters[-1]) as call:
        call.attempt("openai", "m").end()
    return HttpResponse(b"{}", content_type="application/json")


_exporters: list[Any] = []
urlpatterns = [
    path(CHAT.lstrip("/"), plain),
    path("stream/v1/chat/completions", streamed),
    path("failing/v1/chat/completions", failing),
    path("by-hand", by_hand),
]


@pytest.fixture
def client(mirrors: Mirrors) -> Client:
    """A client of Django's own WSGI handler inside the middleware."""
    _exporters[:] = [mirrors.exporter]
    return Client(GatewayTracingWSGIMiddleware(get_wsgi_application(), mirrors.exporter))


@pytest.fixture
def finished() -> Iterator[list[object]]:
    """Django's signals when a request is over, once each."""
    seen: list[object] = []

    def note(sender: object, **more: Any) -> None:
        seen.append(sender)

    request_finished.connect(note)
    yield seen
    request_finished.disconnect(note)


def post(client: Client, where: str, **more: Any) -> Any:
    return client.post(where, json=REQUEST, headers={"traceparent": TRACEPARENT}, **more)


def test_a_view(client: Client, mirrors: Mirrors, finished: list[object]):
    """The view reads the request, and the mirror has the facts of the response."""
    response = post(client, CHAT, buffered=True)
    assert response.data == SAMPLES["chat"].body
    (gateway, of_call), (_, of_attempt) = spans_of(mirrors)
    assert gateway == "gateway/chat"
    assert ids_of(mirrors.spans[0])[1] == PARENT.span_id
    assert of_attempt["mlflow.chat.tokenUsage"]["total_tokens"] == 120
    assert of_call.get("gen_ai.request.stream", False) is False
    assert len(finished) == 1


def test_a_streaming_response(client: Client, mirrors: Mirrors, finished: list[object]):
    """The generator of a StreamingHttpResponse runs inside the call."""
    response = post(client, "/stream/v1/chat/completions", buffered=True)
    assert response.data == b"".join(CHUNKS)
    (gateway, of_call), (attempt, _) = spans_of(mirrors)
    assert (gateway, attempt) == ("gateway/ours", "provider/openai/m")
    assert of_call["gen_ai.request.stream"] is True
    assert len(finished) == 1


def test_a_client_that_hangs_up(client: Client, mirrors: Mirrors, finished: list[object]):
    """A response that the server closes early is recorded as a disconnect, and Django's resources are closed."""
    response = post(client, "/stream/v1/chat/completions", buffered=False)
    assert next(iter(response.response)) == CHUNKS[0]
    response.close()
    assert mirrors.error_type == "client_disconnect"
    assert len(finished) == 1


def test_a_view_that_fails(client: Client, mirrors: Mirrors):
    """Django answers 500 for an exception; the mirror has the status, not the exception's message."""
    assert post(client, "/failing/v1/chat/completions", buffered=True).status_code == 500
    assert mirrors.error_type == "500"
    assert CANARY not in str([span.to_json() for span in mirrors.spans])


def test_a_route_that_there_is_not(client: Client, mirrors: Mirrors):
    """Django answers 404 before any view has checked a key: nothing is mirrored."""
    assert post(client, "/nowhere/v1/chat/completions", buffered=True).status_code == 404
    assert mirrors.spans == []


def test_headers_of_django(client: Client, mirrors: Mirrors):
    """gateway_call() reads Django's own mapping of headers."""
    assert post(client, "/by-hand", buffered=True).status_code == 200
    assert [span.name for span in mirrors.spans] == ["gateway/hand", "provider/openai/m"]
    assert ids_of(mirrors.spans[0])[1] == PARENT.span_id
