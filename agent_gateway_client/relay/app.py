"""The relay as an ASGI application: OTLP/HTTP traces in, calls out to the exporter."""

import asyncio
import atexit
import json
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from agent_gateway_client._log import logger
from agent_gateway_client.relay import otlp_json, protobuf
from agent_gateway_client.relay.answers import JSON, PROTOBUF, Answer, refused, taken
from agent_gateway_client.relay.body import ClientGone, TooLarge, decompress, receive_body
from agent_gateway_client.relay.collect import Collection
from agent_gateway_client.relay.dialects import ALL_KEYS, NAMES
from agent_gateway_client.relay.limits import Limits
from agent_gateway_client.relay.spans import Batch, MalformedBody
from agent_gateway_client.server.asgi.exchange import Receive, Scope, Send
from agent_gateway_client.server.bearer import is_opened_by
from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.observed.companion import Companion
from agent_gateway_client.server.observed.pages import METRICS_PATH, STATUS_PATH, read_page

TRACES_PATH = "/v1/traces"
HEALTH_PATH = "/health"

_RETRY_AFTER_S = "5"
_BODY_SECONDS = 30.0
_STOP_SECONDS = 10.0
_LONGEST_REST_S = 1.0
_IN_A_THREAD = 256 * 1024
"""Larger bodies are decoded in a thread: they would block the event loop for more than 10 ms."""


class Sink(Protocol):
    """Accepts finished calls, as :class:`agent_gateway_client.server.export.Exporter` does."""

    def submit(self, call: GatewayCall) -> None:
        """Accept a call. Returns at once and never raises."""

    def flush(self, timeout: float) -> bool:
        """Wait until all submitted calls were sent or dropped; return whether they were."""


class Refused(Exception):
    """The request is refused.

    Args:
        status: The HTTP status.
        why: The reason, as a sentence for the sender's log.
        headers: Additional response headers; underscores stand for hyphens.
    """

    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.headers = headers


class Relay:
    """An OTLP/HTTP receiver for gateways' traces. Run it with uvicorn, or mount it in another application.

    A parent application must call :meth:`close` when it shuts down. Spans that are still held when the process exits
    are sent then as well.

    Args:
        exporter: Writes the mirrors.
        token: Senders must send it as ``Authorization: Bearer …``; ``None`` accepts everybody.
        limits: Bounds on requests and on what is held.
        collection: Holds the spans of unfinished calls.
        is_full: Returns whether the exporter's queue is full. Senders are then asked to wait, which is better than
            accepting their spans and dropping the oldest calls.
        companion: Serves ``GET /agent-gateway/status`` and ``…/metrics`` to senders that have the token; ``None``
            serves neither.
    """

    def __init__(
        self,
        exporter: Sink,
        *,
        token: str | None = None,
        limits: Limits | None = None,
        collection: Collection | None = None,
        is_full: Callable[[], bool] = lambda: False,
        companion: Companion | None = None,
    ) -> None:
        self._exporter = exporter
        self._token = token
        self._limits = limits or Limits()
        self.collection = collection or Collection(self._limits)
        self._is_full = is_full
        self._companion = companion
        self._receiving = 0
        self._requests = 0
        self._refused: Counter[str] = Counter()
        self._stopping = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        _relays.add(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await (await self._answer(scope, receive)).send(send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    def close(self, timeout: float = _STOP_SECONDS) -> None:
        """Refuse further requests, and send everything that is held."""
        self._stopping = True
        self._wake.set()
        self._submit_due(all_of_them=True)
        if not self._exporter.flush(timeout):
            logger.warning("The relay is stopping before all mirrors were sent.")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await asyncio.to_thread(self.close)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path = _path(scope)
        if path == HEALTH_PATH and scope["method"] in ("GET", "HEAD"):
            return self._health()
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._companion is not None and path in (STATUS_PATH, METRICS_PATH) and scope["method"] in ("GET", "HEAD"):
            return self._page(path, headers, self._companion)
        content_type = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        try:
            self._check(path, scope["method"], headers, content_type)
            batch = await self._read(receive, headers, content_type)
        except Refused as error:
            self._refused[str(error.status)] += 1
            return refused(error.status, error.why, content_type, **error.headers)
        self._requests += 1
        self._keep_running()
        self.collection.add(batch.spans)
        self._wake.set()
        return taken(batch.rejected, content_type)

    def _check(self, path: str, method: str, headers: dict[bytes, bytes], content_type: str) -> None:
        """Refuse requests whose body need not be read.

        Raises:
            Refused: The request is not accepted.
        """
        if path != TRACES_PATH:
            raise Refused(404, f"The relay accepts traces only, at {TRACES_PATH}.")
        if method != "POST":
            raise Refused(405, "Send traces with POST.", allow="POST")
        if not self._is_opened(headers):
            raise Refused(401, "Send the relay's token as 'Authorization: Bearer …'.", www_authenticate="Bearer")
        if content_type not in (PROTOBUF, JSON):
            raise Refused(415, f"Send OTLP as {PROTOBUF} or {JSON}.")
        if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"gzip", b"identity", b""):
            raise Refused(415, "Send the body uncompressed or with gzip.", accept_encoding="gzip")
        if self._stopping:
            raise Refused(503, "The relay is stopping.", retry_after=_RETRY_AFTER_S)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            raise Refused(413, self._too_large)
        if not self.collection.has_room():
            raise Refused(429, "The relay holds as many spans as its limit allows.", retry_after=_RETRY_AFTER_S)
        if self._is_full():
            raise Refused(429, "Too many mirrors are waiting for the store.", retry_after=_RETRY_AFTER_S)

    def _is_opened(self, headers: dict[bytes, bytes]) -> bool:
        return self._token is None or is_opened_by(self._token, headers.get(b"authorization", b"").decode("latin-1"))

    async def _read(self, receive: Receive, headers: dict[bytes, bytes], content_type: str) -> Batch:
        reserved = 0

        def reserve(size: int) -> None:
            nonlocal reserved
            if self._receiving + size > self._limits.bodies_bytes:
                raise Refused(
                    429, "The relay is receiving as many bytes as its limit allows.", retry_after=_RETRY_AFTER_S
                )
            self._receiving += size
            reserved += size

        try:
            body = await asyncio.wait_for(receive_body(receive, self._limits.body_bytes, reserve), _BODY_SECONDS)
            is_gzip = headers.get(b"content-encoding", b"").strip().lower() == b"gzip"
            if is_gzip or len(body) > _IN_A_THREAD:
                return await asyncio.to_thread(self._decoded, body, is_gzip, content_type)
            return self._decoded(body, is_gzip, content_type)
        except TooLarge:
            raise Refused(413, self._too_large) from None
        except MalformedBody as error:
            raise Refused(400, f"The body cannot be decoded: {error}.") from None
        except (ClientGone, TimeoutError, asyncio.TimeoutError):
            raise Refused(408, "The body was not received completely.") from None
        finally:
            self._receiving -= reserved

    def _decoded(self, body: bytes, is_gzip: bool, content_type: str) -> Batch:
        if is_gzip:
            body = decompress(body, self._limits.body_bytes)
        limits = self._limits
        bounds = (ALL_KEYS, NAMES, limits.request_spans, limits.span_attributes)
        if content_type == PROTOBUF:
            return protobuf.read_request(body, *bounds)
        if body.count(b"{") + body.count(b"[") > limits.json_containers:
            raise TooLarge
        return otlp_json.read_request(body, *bounds)

    @property
    def _too_large(self) -> str:
        return f"The body is larger than {self._limits.body_bytes} bytes; send smaller batches."

    def _health(self) -> Answer:
        status = {"status": "stopping" if self._stopping else "ok", **self._counts()}
        return Answer(503 if self._stopping else 200, json.dumps(status).encode())

    def _counts(self) -> dict[str, int]:
        """Return how many requests, spans and calls were received, and what became of them."""
        return {
            "requests": self._requests,
            "refused": sum(self._refused.values()),
            "spans_held": self.collection.held,
            **dict(self.collection.counts),
        }

    def _page(self, path: str, headers: dict[bytes, bytes], companion: Companion) -> Answer:
        if not self._is_opened(headers):
            return refused(401, "Send the relay's token as 'Authorization: Bearer …'.", JSON, www_authenticate="Bearer")
        if path == METRICS_PATH:
            page = read_page(path, companion)
            return Answer(page.status, page.body, page.media_type)
        relay = {**self._counts(), "refused": dict(self._refused)}
        return Answer(200, json.dumps({**companion.status(), "relay": relay}).encode())

    def _keep_running(self) -> None:
        """Start the thread that submits finished calls if it is not running."""
        with self._start_lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="agent-gateway-relay", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            rest = self.collection.next_due()
            self._wake.wait(_LONGEST_REST_S if rest is None else min(rest, _LONGEST_REST_S))
            self._wake.clear()
            self._submit_due()

    def _submit_due(self, *, all_of_them: bool = False) -> None:
        try:
            for call in self.collection.due(all_of_them=all_of_them):
                self._exporter.submit(call)
        except Exception as error:
            # Later calls may still succeed.
            logger.warning("The relay could not assemble calls (%s).", type(error).__name__, exc_info=True)


def _path(scope: Scope) -> str:
    """Return the path relative to the mount point."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root) else path


_relays: "weakref.WeakSet[Relay]" = weakref.WeakSet()


def _close_all() -> None:
    for relay in list(_relays):
        with suppress(Exception):
            if not relay._stopping:
                relay.close()


atexit.register(_close_all)
