"""A small deterministic model provider on loopback, for the demo, the tests and the notebooks.

It serves the APIs of OpenAI, Anthropic and Gemini that agents use most. A model's name defines its behaviour: see
`agent_gateway_client.demo.behaviour`.

Example:
    with Provider() as provider:
        client = openai.OpenAI(base_url=f"{provider.url}/v1", api_key="none")
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_gateway_client.demo import _anthropic, _gemini, _openai_chat, _openai_responses
from agent_gateway_client.demo._port import KEEP_ALIVE_S, listen
from agent_gateway_client.demo.behaviour import ProviderStreamBroken
from agent_gateway_client.errors import StartError

MAX_RECORDED = 10_000
_START_DEADLINE_S = 30.0

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class RecordedRequest:
    """One request the provider received.

    Attributes:
        method: HTTP method.
        path: Path, without the query.
        query: Query string, without the question mark.
        headers: Name and value pairs in the order received, duplicates kept; names are in lower case.
        body: The JSON body, or None if there is none.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: Any

    def header(self, name: str) -> list[str]:
        """Return all values of a header; the name is case-insensitive."""
        return [value for key, value in self.headers if key == name.lower()]


class Provider:
    """The provider, in a thread of this process; a context manager.

    Args:
        port: TCP port on 127.0.0.1; 0 for a free one.

    Raises:
        StartError: From `start`, if the port is taken or the server does not start.
    """

    def __init__(self, port: int = 0) -> None:
        self._wanted_port = port
        self._requests: deque[RecordedRequest] = deque(maxlen=MAX_RECORDED)
        self._lock = threading.Lock()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._port: int | None = None

    @property
    def url(self) -> str:
        """Base URL, such as ``http://127.0.0.1:41234``; OpenAI's API is below ``/v1``."""
        if self._port is None:
            raise StartError("The provider is not running; call start() or use `with Provider()`.")
        return f"http://127.0.0.1:{self._port}"

    @property
    def requests(self) -> list[RecordedRequest]:
        """The last 10,000 requests, oldest first."""
        with self._lock:
            return list(self._requests)

    def clear(self) -> None:
        """Forget the requests received so far."""
        with self._lock:
            self._requests.clear()

    def start(self) -> Provider:
        """Start serving; returns when requests are answered."""
        if self._thread is not None:
            return self
        listener = listen(self._wanted_port)
        self._port = listener.getsockname()[1]
        # Without websockets, for which uvicorn would import a deprecated module.
        config = uvicorn.Config(
            _Recorder(Starlette(routes=self._routes()), self._record),
            log_config=None,
            log_level=None,
            access_log=False,
            lifespan="off",
            ws="none",
            loop="asyncio",
            timeout_graceful_shutdown=1,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        logging.getLogger("uvicorn.error").addFilter(_is_unintended)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=_serve, args=(self._server, listener), name="local-model-provider", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_DEADLINE_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise StartError("The local model provider did not start.")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Stop serving and free the port; open streams are cut off after a second."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._server = self._thread = self._port = None

    def __enter__(self) -> Provider:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _record(self, request: RecordedRequest) -> None:
        with self._lock:
            self._requests.append(request)

    def _routes(self) -> list[BaseRoute]:
        return [
            *below_prefixes("/chat/completions", _openai_chat.chat_completions),
            *below_prefixes("/embeddings", _openai_chat.embeddings),
            *below_prefixes("/responses", _openai_responses.responses),
            Route("/v1/messages", _anthropic.messages, methods=["POST"]),
            Route("/v1beta/models/{call}", _gemini.generate, methods=["POST"]),
            Route("/serving-endpoints/gemini/v1beta/models/{call}", _gemini.generate, methods=["POST"]),
            Route("/_requests", self._list_requests),
            Route("/_requests", self._clear_requests, methods=["DELETE"]),
        ]

    async def _list_requests(self, request: Request) -> Response:
        return JSONResponse([asdict(recorded) for recorded in self.requests])

    async def _clear_requests(self, request: Request) -> Response:
        self.clear()
        return Response(status_code=204)


def below_prefixes(path: str, handler: Handler) -> list[BaseRoute]:
    """Return the routes of one of OpenAI's APIs, which Azure and Databricks serve below their own prefixes."""
    prefixes = ("/v1", "/openai/deployments/{deployment}", "/serving-endpoints")
    return [Route(prefix + path, handler, methods=["POST"]) for prefix in prefixes]


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    with listener:
        server.run(sockets=[listener])


class _Recorder:
    """ASGI middleware that records requests, except those to ``/_requests``."""

    def __init__(self, app: ASGIApp, record: Callable[[RecordedRequest], None]) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/_requests":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        while True:
            messages.append(await receive())
            if messages[-1]["type"] != "http.request" or not messages[-1].get("more_body"):
                break
        raw = b"".join(message.get("body", b"") for message in messages)
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = None
        headers = tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"])
        query = scope["query_string"].decode("latin-1")
        self._record(RecordedRequest(scope["method"], scope["path"], query, headers, body))

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)


def _is_unintended(record: logging.LogRecord) -> bool:
    """Keep uvicorn from logging the error that cuts off a broken model's stream."""
    return not (record.exc_info and _is_broken_stream(record.exc_info[1]))


def _is_broken_stream(error: BaseException | None) -> bool:
    inner = getattr(error, "exceptions", ())
    return isinstance(error, ProviderStreamBroken) or any(_is_broken_stream(e) for e in inner)
