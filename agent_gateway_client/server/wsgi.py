"""The middleware for WSGI gateways: Flask, Django, gunicorn's threads. It reads the same facts as that for ASGI."""

import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, TypeVar

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.active_span import model_call
from agent_gateway_client.server.asgi.exchange import body_to_keep
from agent_gateway_client.server.bearer import is_opened_by
from agent_gateway_client.server.call import CLIENT_DISCONNECT, GatewayCall, address, current_call, status_code
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.observed.companion import Companion
from agent_gateway_client.server.observed.pages import PATHS, closed, read_page, token_from_environment
from agent_gateway_client.server.probe import COMPANION_HEADER, PROBE_HEADER, answer
from agent_gateway_client.server.reading.bodies import CompressedBody, KeptBody
from agent_gateway_client.server.reading.details import Details
from agent_gateway_client.server.reading.responses import LAST_CHUNKS, has_last_event
from agent_gateway_client.server.routes import is_model_path
from agent_gateway_client.server.shared import shared_exporter
from agent_gateway_client.server.upstreams import UpstreamRequests, instrument_upstreams
from agent_gateway_client.w3c import parse

T = TypeVar("T")
Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

_PROBE = "HTTP_" + PROBE_HEADER.upper().replace("-", "_")
_TRACE_VARIABLES = ("HTTP_TRACEPARENT", "HTTP_TRACESTATE", "HTTP_BAGGAGE")

_guard = Guard("Could not mirror a gateway call")


class GatewayTracingWSGIMiddleware:
    """Mirrors the calls of a WSGI gateway into their callers' traces.

    Request and response are passed on unchanged and without delay; references to their start and end are kept and read
    after the call. The application may add facts to :func:`~agent_gateway_client.server.current_gateway_call`, also in
    the generator of a streamed response.

    Example:
        app = Flask("gateway")
        app.wsgi_app = GatewayTracingWSGIMiddleware(app.wsgi_app)

    Args:
        app: The gateway.
        exporter: Sends the calls; by default the process's shared exporter, configured by the environment.
        is_call: Returns whether a request is a model call, by WSGI environ; by default the POSTs to the known routes.
        endpoint: The endpoint's name, or a function that returns it for an environ after the request was served. By
            default the ``model`` of a successful request.
        provider: The provider's name for an attempt that is known only from the response.
        strip_trace_context: Whether to remove ``traceparent``, ``tracestate`` and ``baggage`` from model calls.
        may_join: Returns whether a request may join the trace of its ``traceparent``, by environ after the request was
            served.
        upstream_gateways: Providers that are gateways too; by default those in ``AGENT_GATEWAY_URLS``.

    Raises:
        AgentGatewayError: An environment variable, or an upstream gateway, has an invalid value.
    """

    def __init__(
        self,
        app: WSGIApp,
        exporter: Exporter | None = None,
        *,
        is_call: Callable[[Environ], bool] | None = None,
        endpoint: str | Callable[[Environ], str | None] | None = None,
        provider: str | None = None,
        strip_trace_context: bool = False,
        may_join: Callable[[Environ], bool] | None = None,
        upstream_gateways: Iterable[str] | None = None,
    ) -> None:
        self.app = app
        self.exporter = exporter or shared_exporter()
        self.endpoint = endpoint
        self.provider = provider
        self.may_join = may_join
        self._is_call = is_call
        self._strip_trace_context = strip_trace_context
        gateways = instrument_upstreams(upstream_gateways)
        self.upstream_gateways = gateways or None
        self._status_token = token_from_environment()
        self.companion = Companion(self.exporter, may_join, gateways)
        self.companion.start()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if not self.is_call(environ):
            is_get = environ.get("REQUEST_METHOD") in ("GET", "HEAD")
            if self._status_token is not None and is_get and _path(environ).endswith(PATHS):
                return self._page(self._status_token, environ, start_response)
            return self.app(environ, start_response)
        received = environ.get("HTTP_TRACEPARENT", "")
        is_probe = _PROBE in environ
        if not received and not is_probe and not self._strip_trace_context:
            return self.app(environ, start_response)
        state = environ.get("HTTP_TRACESTATE")
        parent = parse((received,), () if state is None else (state,))
        environ = dict(environ)
        if self._strip_trace_context:
            for variable in _TRACE_VARIABLES:
                environ.pop(variable, None)
        if is_probe:
            del environ[_PROBE]
        if parent is None or not parent.sampled:
            return self.app(environ, start_response)
        probe = answer([(b"traceparent", received.encode("latin-1"))], self.exporter) if is_probe else None
        call = GatewayCall(parent, server_address=address(environ.get("SERVER_NAME"), environ.get("SERVER_PORT")))
        return _Exchange(self, call, environ, probe).run(start_response)

    def _page(self, token: str, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        is_open = is_opened_by(token, environ.get("HTTP_AUTHORIZATION"))
        page = read_page(_path(environ), self.companion) if is_open else closed()
        start_response(f"{page.status} {HTTPStatus(page.status).phrase}", page.headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [page.body]

    def is_call(self, environ: Environ) -> bool:
        """Return whether a request is a model call. May be overridden."""
        if self._is_call is None:
            return environ.get("REQUEST_METHOD") == "POST" and is_model_path(_path(environ))
        return bool(_call_hook("is_call", self._is_call, environ))


class _Exchange:
    """One request and its response, until the application's iterable is closed."""

    __slots__ = (
        "_call",
        "_environ",
        "_is_submitted",
        "_last_chunk_ns",
        "_middleware",
        "_probe",
        "_request",
        "_response",
        "_start_response",
        "_write",
    )

    def __init__(
        self,
        middleware: GatewayTracingWSGIMiddleware,
        call: GatewayCall,
        environ: Environ,
        probe: tuple[bytes, bytes] | None,
    ) -> None:
        self._middleware = middleware
        self._call = call
        self._environ = environ
        self._probe = probe
        self._last_chunk_ns: int | None = None
        self._response: KeptBody | CompressedBody | None = None
        self._is_submitted = False
        self._request: KeptBody | None = None
        if middleware.endpoint is None and "wsgi.input" in environ:
            self._request = KeptBody()
            environ["wsgi.input"] = _RecordingInput(environ["wsgi.input"], self._request)

    def run(self, start_response: StartResponse) -> Iterable[bytes]:
        """Call the application."""
        self._start_response = start_response
        try:
            result = self.inside(self._middleware.app, self._environ, self._begin_response)
        except BaseException as error:
            self.finish(error)
            raise
        if type(result) is list:
            return _ListResponse(result, self)
        return _SizedResponse(result, self) if hasattr(result, "__len__") else _Response(result, self)

    def inside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function of the application with this call as the current one."""
        token = current_call.set(self._call)
        try:
            upstream = self._middleware.upstream_gateways
            if upstream is None:
                return function(*arguments)
            outer = model_call.get()
            model_call.set(UpstreamRequests(self._call, upstream))
            try:
                return function(*arguments)
            finally:
                model_call.set(outer)
        finally:
            current_call.reset(token)

    def add(self, chunk: bytes) -> None:
        """Record a chunk of the response before the server gets it."""
        if not chunk:
            return
        now = time.time_ns()
        if self._last_chunk_ns is None and self._call.streaming:
            self._call.time_to_first_chunk_ns = now - self._call.start_time_ns
        self._last_chunk_ns = now
        if self._response is not None:
            self._response.add(chunk)

    def hang_up(self) -> None:
        """End the call if the server closes the response early; many clients disconnect after the last event."""
        if self._is_submitted:
            return
        last_chunks = self._response.last_chunks(LAST_CHUNKS) if self._response and self._call.streaming else b""
        self.finish(None if has_last_event(last_chunks) else CLIENT_DISCONNECT)

    def finish(self, error: BaseException | str | None = None) -> None:
        """End and submit the call. Later calls have no effect."""
        if self._is_submitted:
            return
        self._is_submitted = True
        try:
            self._submit(error)
        except Exception as failure:
            _guard.caught(failure)

    def _submit(self, error: BaseException | str | None) -> None:
        call, middleware = self._call, self._middleware
        if error is not None:
            call.end(error)
        call.http_status = status_code(call.http_status)
        status = call.http_status or 500
        call.end(str(status) if status >= 400 else None, self._last_chunk_ns)
        if call.endpoint is None and middleware.endpoint is not None:
            endpoint = middleware.endpoint
            call.endpoint = _call_hook("endpoint", endpoint, self._environ) if callable(endpoint) else endpoint
        if call.is_refused():
            return
        if middleware.may_join is not None and not _call_hook("may_join", middleware.may_join, self._environ):
            return
        details = Details(
            None,
            {"path": _path(self._environ)},
            request=self._request,
            response=self._response,
            provider=middleware.provider,
        )
        middleware.exporter.submit(call, details)

    def _begin_response(self, status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        """WSGI's ``start_response`` for the application."""
        self._call.http_status = status_code(status)
        # The lengths of Content-Type and Content-Encoding.
        lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers if len(name) in {12, 16}]
        self._response = body_to_keep(self._call, lines)
        if self._probe is not None and not self._call.is_refused():
            headers = [*headers, (COMPANION_HEADER, self._probe[1].decode())]
        self._write = self._start_response(status, headers, *exc_info)
        return self._add_and_write

    def _add_and_write(self, chunk: bytes) -> Any:
        self.add(chunk)
        return self._write(chunk)


class _Response:
    """The application's iterable, passed on chunk by chunk."""

    def __init__(self, result: Iterable[bytes], exchange: _Exchange) -> None:
        self._result = result
        self._exchange = exchange
        self._chunks: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            if self._chunks is None:
                self._chunks = self._exchange.inside(iter, self._result)
            chunk: bytes = self._exchange.inside(next, self._chunks)
        except StopIteration:
            self._exchange.finish()
            raise
        except BaseException as error:
            self._exchange.finish(error)
            raise
        self._exchange.add(chunk)
        return chunk

    def close(self) -> None:
        """End the response; a server also calls this if the client has disconnected."""
        self._exchange.hang_up()
        close = getattr(self._result, "close", None)
        if close is not None:
            self._exchange.inside(close)


class _SizedResponse(_Response):
    """A response with a known number of chunks; for a single one, a server sends ``Content-Length``."""

    def __len__(self) -> int:
        return len(self._result)  # type: ignore[arg-type]


class _ListResponse(_SizedResponse):
    """A list of chunks. Iterating over it runs none of the application's code."""

    def __next__(self) -> bytes:
        if self._chunks is None:
            self._chunks = iter(self._result)
        for chunk in self._chunks:
            self._exchange.add(chunk)
            return chunk
        self._exchange.finish()
        raise StopIteration

    def close(self) -> None:
        self._exchange.hang_up()


class _RecordingInput:
    """``wsgi.input``; keeps the data that the application reads."""

    def __init__(self, source: Any, kept: KeptBody) -> None:
        self._source = source
        self._kept = kept

    def read(self, *size: int) -> bytes:
        data: bytes = self._source.read(*size)
        self._kept.add(data)
        return data

    def readline(self, *size: int) -> bytes:
        return self._note(self._source.readline(*size))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readlines(self, *hint: int) -> list[bytes]:
        return [self._note(line) for line in self._source.readlines(*hint)]

    def __iter__(self) -> Iterator[bytes]:
        return map(self._note, self._source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def _note(self, data: bytes) -> bytes:
        self._kept.add(data)
        return data


def _path(environ: Environ) -> str:
    return f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"


def _call_hook(name: str, function: Callable[[Environ], Any], environ: Environ) -> Any:
    """Call a function that was passed to the middleware; ``None`` if it raises."""
    try:
        return function(environ)
    except Exception as error:
        logger.debug("%s() failed", name, exc_info=True)
        warn_once(
            f"wsgi.{name}",
            "%s() raised %s; mirrors of such calls are missing or incomplete. Fix the function that was passed to the "
            "middleware.",
            name,
            type(error).__name__,
        )
        return None
