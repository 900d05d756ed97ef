"""``gateway_call()``: for gateways that no middleware covers. One ``with`` block is one call."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import Token
from email.message import Message
from typing import Any

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.active_span import ModelCall, model_call
from agent_gateway_client.server.call import NO_PARENT, GatewayCall, Operation, current_call, status_code
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.reading.bodies import KeptBody
from agent_gateway_client.server.reading.details import add_facts
from agent_gateway_client.server.reading.responses import LAST_CHUNKS, has_last_event, read_response
from agent_gateway_client.server.shared import submit_to_shared
from agent_gateway_client.server.upstreams import UpstreamRequests, instrument_upstreams_or_warn
from agent_gateway_client.w3c import extract

Headers = Mapping[str, Any] | Iterable[tuple[str | bytes, Any]] | Message | None
"""A mapping, pairs of name and value, or an ``http.client.HTTPMessage``. A value may be a list of values."""


class gateway_call(AbstractContextManager[GatewayCall], AbstractAsyncContextManager[GatewayCall]):
    """Mirrors the block into the caller's trace; a sync or async context manager.

    Inside the block, :func:`~agent_gateway_client.server.current_gateway_call` returns the call. The call fails if an
    exception leaves the block, or if its ``http_status`` is set to 400 or more. If the caller is not tracing, the block
    gets a call that is never exported, so the code inside needs no ``if``.

    Requests that the block sends to the gateways in ``AGENT_GATEWAY_URLS`` carry the trace context, with the current
    attempt as parent, if they are sent with httpx, httpx2 or aiohttp, or with the headers of
    :func:`~agent_gateway_client.trace_headers`.

    Example:
        with gateway_call(request.headers, endpoint="chat") as call:
            with call.attempt(provider="openai", model="gpt-4o-mini") as attempt:
                answer = ask(request.json)
                attempt.usage = TokenUsage(input_tokens=answer.input_tokens, output_tokens=answer.output_tokens)

    Args:
        headers: The request's headers: a mapping, whose values may be lists; pairs of name and value, one per header
            line; or a framework's headers object (Flask, Django, ``http.server``). Headers that cannot be read cause
            one warning, and the call is not mirrored.
        endpoint: The endpoint's name in the gateway's configuration. Do not pass a name from the caller unchecked.
        operation: What the model is called for.
        request_type: The gateway's own name for the route.
        server_address: ``host:port`` at which the gateway was reached.
        may_join: Whether the caller may join the trace of its ``traceparent``. If not, the call is not mirrored.
        exporter: Sends the call; by default the process's shared exporter, configured by the environment. An invalid
            environment is logged and calls are not mirrored; to fail at start instead, call
            :func:`~agent_gateway_client.server.shared.shared_exporter` there.
    """

    def __init__(
        self,
        headers: Headers,
        *,
        endpoint: str | None = None,
        operation: Operation = "other",
        request_type: str | None = None,
        server_address: str | None = None,
        may_join: bool = True,
        exporter: Exporter | None = None,
    ) -> None:
        parent = extract(_header_lines(headers))
        self._traced = may_join and parent is not None and parent.sampled
        self._exporter = exporter
        self._token: Token[GatewayCall | None] | None = None
        self._outer: ModelCall | None = None
        self._call = GatewayCall(
            parent or NO_PARENT,
            endpoint=endpoint,
            operation=operation,
            request_type=request_type,
            server_address=server_address,
        )

    def __enter__(self) -> GatewayCall:
        self._token = current_call.set(self._call if self._traced else None)
        self._outer = model_call.get()
        if self._traced and (gateways := instrument_upstreams_or_warn()):
            model_call.set(UpstreamRequests(self._call, gateways))
        return self._call

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if self._token is not None:
                current_call.reset(self._token)
                model_call.set(self._outer)
        except ValueError:
            # A generator that streams a response may be closed in a different context.
            logger.debug("A gateway call ended in a different context than it started in")
        status = self._call.http_status = status_code(self._call.http_status)
        self._call.end(error or (str(status) if status and status >= 400 else None))
        if not self._traced:
            return
        if self._exporter is not None:
            self._exporter.submit(self._call)
        else:
            submit_to_shared(self._call)

    async def __aenter__(self) -> GatewayCall:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.__exit__(kind, error, trace)


def _header_lines(headers: Any) -> list[tuple[str | bytes, str | bytes]]:
    """Return a request's header lines from any supported container. Never raises: the request must be served."""
    try:
        # Werkzeug's headers and HTTPMessage have items() but are not mappings.
        pairs = headers.items() if hasattr(headers, "items") else headers or ()
        return [
            (name, line)
            for name, value in pairs
            for line in (value if isinstance(value, (list, tuple)) else [value])
            if isinstance(name, (str, bytes)) and isinstance(line, (str, bytes))
        ]
    except Exception as error:
        logger.debug("gateway_call() cannot read its headers", exc_info=True)
        warn_once(
            "gateway_call.headers",
            "gateway_call() cannot read headers of type %s (%s); such calls are not mirrored. Pass a mapping, or pairs "
            "of name and value.",
            type(headers).__name__,
            type(error).__name__,
        )
        return []


def add_response(call: GatewayCall, body: bytes | Iterable[bytes], *, streaming: bool = False) -> None:
    """Add the facts in a provider's successful response to a call; for code inside ``gateway_call()``.

    Args:
        call: The call. The facts are added to its last attempt, which is created if there is none.
        body: The response's body without content encoding, whole or in chunks.
        streaming: Whether it is a stream of server-sent events.
    """
    kept = KeptBody()
    for chunk in [body] if isinstance(body, bytes) else body:
        kept.add(chunk)
    add_facts(call, read_response(kept, streaming=streaming))


def relayed(call: GatewayCall, chunks: Iterable[bytes], *, streaming: bool) -> Iterator[bytes]:
    """Pass on the chunks of a provider's successful response and add its facts to the call at the end.

    The call of a stream lasts until the last chunk. A client that disconnects after the last event has received the
    whole response.

    Args:
        call: The call. The facts are added to its last attempt, which is created if there is none.
        chunks: The response's body without content encoding.
        streaming: Whether it is a stream of server-sent events.

    Yields:
        The chunks, unchanged.
    """
    call.streaming = streaming
    kept, last_ns, complete = KeptBody(), call.start_time_ns, False
    try:
        for chunk in chunks:
            # Taken before the chunk is sent, so that the client's span contains the mirror.
            last_ns = time.time_ns()
            if streaming and call.time_to_first_chunk_ns is None:
                call.time_to_first_chunk_ns = last_ns - call.start_time_ns
            kept.add(chunk)
            yield chunk
        complete = True
    finally:
        if complete or (streaming and has_last_event(kept.last_chunks(LAST_CHUNKS))):
            call.end(end_time_ns=last_ns)
        add_facts(call, read_response(kept, streaming=streaming))
