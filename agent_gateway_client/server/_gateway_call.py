"""Gateways that are no ASGI application: Flask in threads, a worker, a loop. One call per ``with``."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import Token
from email.message import Message
from typing import Any

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.active_span import ModelCall, model_call
from agent_gateway_client.server.call import NOBODY, GatewayCall, Operation, current_call, status_code
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.reading.bodies import KeptBody
from agent_gateway_client.server.reading.details import add_facts
from agent_gateway_client.server.reading.responses import LAST_CHUNKS, has_last_event, read_response
from agent_gateway_client.server.shared import submit_to_shared
from agent_gateway_client.server.upstreams import UpstreamRequests, reached_gateways_at_request_time
from agent_gateway_client.w3c import extract

Headers = Mapping[str, Any] | Iterable[tuple[str | bytes, Any]] | Message | None
"""A mapping, pairs of name and value, or an ``http.client.HTTPMessage``. A value may be a list of values."""


class gateway_call(AbstractContextManager[GatewayCall], AbstractAsyncContextManager[GatewayCall]):
    """Mirrors what happens inside of it into the caller's trace, with ``with`` or ``async with``.

    Inside, :func:`~agent_gateway_client.server.current_gateway_call` returns the call. An exception that passes through
    makes it a failed one, and so does an ``http_status`` of 400 or more that is set on it. Where the caller is not
    tracing, the call that comes out of it takes everything and goes nowhere, so the code inside needs no ``if``.

    Requests to the gateways in ``AGENT_GATEWAY_URLS`` carry the trace context on, below the attempt under way, if they
    are made with httpx, httpx2 or aiohttp, or with the headers of :func:`~agent_gateway_client.trace_headers`.

    Example:
        with gateway_call(request.headers, endpoint="chat") as call:
            with call.attempt(provider="openai", model="gpt-4o-mini") as attempt:
                answer = ask(request.json)
                attempt.usage = TokenUsage(input_tokens=answer.input_tokens, output_tokens=answer.output_tokens)

    Args:
        headers: The request's headers: a mapping, whose values may be lists, pairs of name and value, one for each
            header line, or what a framework calls its headers (Flask, Django, ``http.server``). What cannot be read
            is logged once, and the call is served as one whose caller is not tracing.
        endpoint: The endpoint's name in the gateway's configuration. Do not use what the caller says unchecked.
        operation: What is asked of the model.
        request_type: The gateway's own name for the route.
        server_address: ``host:port`` at which the gateway was reached.
        may_join: Whether this caller may join the trace that it names; one who may not is served without a mirror.
        exporter: Where the call is sent to; by default as the environment says, through one exporter per process. An
            environment that cannot work is logged, and calls are served without mirrors; to know it when the gateway
            starts, call :func:`~agent_gateway_client.server.shared.shared_exporter` there.
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
            parent or NOBODY,
            endpoint=endpoint,
            operation=operation,
            request_type=request_type,
            server_address=server_address,
        )

    def __enter__(self) -> GatewayCall:
        self._token = current_call.set(self._call if self._traced else None)
        self._outer = model_call.get()
        if self._traced and (gateways := reached_gateways_at_request_time()):
            model_call.set(UpstreamRequests(self._call, gateways))
        return self._call

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if self._token is not None:
                current_call.reset(self._token)
                model_call.set(self._outer)
        except ValueError:
            # A generator that streams a response may be ended in another context than it began in.
            logger.debug("A gateway call ended in another context than it began in")
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
    """Return a request's header lines, whatever holds them. Never raises: the request has to be served."""
    try:
        # Werkzeug's headers and HTTPMessage have items() and are no mappings.
        pairs = headers.items() if hasattr(headers, "items") else headers or ()
        return [
            (name, line)
            for name, value in pairs
            for line in (value if isinstance(value, (list, tuple)) else [value])
            if isinstance(name, (str, bytes)) and isinstance(line, (str, bytes))
        ]
    except Exception as error:
        logger.debug("The headers that gateway_call() was given cannot be read", exc_info=True)
        warn_once(
            "gateway_call.headers",
            "gateway_call() was given headers of the type %s, which cannot be read (%s); such calls are not mirrored. "
            "Give it a mapping, or pairs of name and value.",
            type(headers).__name__,
            type(error).__name__,
        )
        return []


def add_response(call: GatewayCall, body: bytes | Iterable[bytes], *, streaming: bool = False) -> None:
    """Read a provider's successful response for code that has its bytes at hand, as inside ``gateway_call()``.

    Args:
        call: The call. The last attempt gets what the response says; where there is none yet, one is made.
        body: The response's body without content encoding, whole or in pieces.
        streaming: Whether it is a stream of server-sent events.
    """
    kept = KeptBody()
    for chunk in [body] if isinstance(body, bytes) else body:
        kept.add(chunk)
    add_facts(call, read_response(kept, streaming=streaming))


def relayed(call: GatewayCall, chunks: Iterable[bytes], *, streaming: bool) -> Iterator[bytes]:
    """Hand a provider's successful response on as it comes, for code that is no ASGI app, and read it along.

    A stream's call lasts from its request to its last chunk; one whose client leaves with the last event is complete.

    Args:
        call: The call. The last attempt gets what the response says; where there is none yet, one is made.
        chunks: The response's body without content encoding.
        streaming: Whether it is a stream of server-sent events.

    Yields:
        The chunks, as they are.
    """
    call.streaming = streaming
    kept, last_ns, complete = KeptBody(), call.start_time_ns, False
    try:
        for chunk in chunks:
            # Before it is sent: the client cannot have it earlier, so its span contains the mirror.
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
