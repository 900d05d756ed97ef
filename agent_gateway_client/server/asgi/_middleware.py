"""The ASGI middleware: finds the model calls among the requests and mirrors them."""

import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import warn_once
from agent_gateway_client.active_span import model_call
from agent_gateway_client.server.asgi.exchange import ASGIApp, Exchange, Message, Receive, Scope, Send
from agent_gateway_client.server.asgi.lifespan import run_lifespan
from agent_gateway_client.server.asgi.pages import is_for_page, serve_page
from agent_gateway_client.server.asgi.websocket import REALTIME, Session, session_operation
from agent_gateway_client.server.asgi.websocket import end as end_session
from agent_gateway_client.server.authorization import MayJoin, authorize
from agent_gateway_client.server.call import NO_PARENT, GatewayCall, address, current_call, status_code
from agent_gateway_client.server.export import Exporter, Finish
from agent_gateway_client.server.observed.companion import Companion
from agent_gateway_client.server.observed.pages import token_from_environment
from agent_gateway_client.server.probe import answer, read_parent, scan_headers, without_probe
from agent_gateway_client.server.reading.details import Details
from agent_gateway_client.server.routes import is_model_call
from agent_gateway_client.server.shared import shared_exporter
from agent_gateway_client.server.upstreams import UpstreamRequests, instrument_upstreams, span_id_of_attempt_under_way
from agent_gateway_client.w3c import extract

_TRACE_HEADERS = {b"traceparent", b"tracestate", b"baggage"}


class GatewayTracingMiddleware:
    """Mirrors the calls of an ASGI gateway into their callers' traces.

    A request without a valid, sampled ``traceparent`` costs one scan of its headers. Request and response are passed on
    unchanged and without delay. References to their start and end are kept and read after the call for tokens, model
    and finish reason. The application may add facts, above all its provider attempts, to
    :func:`~agent_gateway_client.server.current_gateway_call`; without them, the mirror has one attempt with the facts
    of the response.

    Example:
        app = FastAPI()
        app.add_middleware(GatewayTracingMiddleware)

    Args:
        app: The gateway.
        exporter: Sends the calls; by default the process's shared exporter, configured by the environment. An invalid
            environment makes the application fail at start.
        is_call: Returns whether a request is a model call, by ASGI scope; by default the POSTs to the routes of
            providers' APIs below any prefix (:func:`~agent_gateway_client.server.routes.is_model_call`). Not called for
            websockets: those whose path ends with ``/realtime`` or ``BidiGenerateContent`` are sessions of a model,
            with one mirror each.
        endpoint: The endpoint's name, or a function that returns it for an ASGI scope after the request was served. By
            default the ``model`` of a successful request. A failed call is named after its route, because its
            ``model`` could be any text.
        provider: The provider's name for an attempt that is known only from the response.
        strip_trace_context: Whether to remove ``traceparent``, ``tracestate`` and ``baggage`` from all model calls, for
            a gateway that forwards its callers' headers to providers.
        may_join: Returns whether a request may join the trace of its ``traceparent``, for a gateway with several
            tenants; by default all may. It gets the ASGI scope after the request was served, with the results of the
            application's authentication in ``scope["state"]`` or ``scope["user"]``, and returns a bool or an awaitable
            of one. Other requests are served without a mirror.
        upstream_gateways: Providers that are gateways too, ``scheme://host[:port][/prefix]`` each; by default those in
            ``AGENT_GATEWAY_URLS``. Requests to them carry the trace context, with the current attempt as parent, if
            they are sent with httpx, httpx2 or aiohttp, or with the headers of
            :func:`~agent_gateway_client.trace_headers`. A value that is not a URL makes the application fail at start.
    """

    def __init__(
        self,
        app: ASGIApp,
        exporter: Exporter | None = None,
        *,
        is_call: Callable[[Scope], bool] | None = None,
        endpoint: str | Callable[[Scope], str | None] | None = None,
        provider: str | None = None,
        strip_trace_context: bool = False,
        may_join: MayJoin | None = None,
        upstream_gateways: Iterable[str] | None = None,
    ) -> None:
        self.app = app
        self.exporter: Exporter | None = None
        self._is_call = is_call
        self._endpoint = endpoint
        self._provider = provider
        self._strip_trace_context = strip_trace_context
        self._may_join = may_join
        self._changes_scope = (
            strip_trace_context or type(self).application_scope is not GatewayTracingMiddleware.application_scope
        )
        self._observes = type(self).observe is not GatewayTracingMiddleware.observe
        self._problem: Exception | None = None
        self.companion: Companion | None = None
        self._status_token: str | None = None
        try:
            self._upstream_gateways = instrument_upstreams(upstream_gateways)
            self._status_token = token_from_environment()
            exporter = exporter or shared_exporter()
            self.companion = Companion(exporter, may_join, self._upstream_gateways, self.warm_up())
            self.exporter = exporter
        except Exception as problem:
            # Without a lifespan, frameworks create their middleware at the first request, and an exception here would
            # fail all requests. In the lifespan it fails the start.
            self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's lifespan."""
        if scope["type"] == "http" and self.exporter is not None:
            headers = scope["headers"]
            if not isinstance(headers, (list, tuple)):
                # ASGI allows any iterable, and some can be read only once.
                headers = list(headers)
                scope = {**scope, "headers": headers}
            # Before is_call(), which most requests then do without.
            parents, is_probe = scan_headers(headers)
            if (parents or is_probe or self._changes_scope) and self.is_call(scope):
                parent = read_parent(parents, headers) if parents else None
                if is_probe:
                    scope = {**scope, "headers": without_probe(headers)}
                scope = self.application_scope(scope)
                is_traced = parent is not None and parent.sampled
                if is_traced or is_probe:
                    call = GatewayCall(parent or NO_PARENT, server_address=_address(scope))
                    if is_probe:
                        send = self._send_with_probe_answer(send, answer(headers, self.exporter), call, scope)
                    if is_traced:
                        await self._serve_mirrored(call, self.exporter, scope, receive, send)
                        return
            if scope["method"] != "POST" and is_for_page(scope) and await self._serve_page(scope, receive, send):
                return
        elif (
            scope["type"] == "websocket"
            and self.exporter is not None
            and (operation := session_operation(scope)) is not None
        ):
            parent = extract(scope["headers"])
            if parent is not None and parent.sampled:
                call = GatewayCall(parent, server_address=_address(scope), operation=operation, request_type=REALTIME)
                await self._serve_session(call, self.exporter, self.application_scope(scope), receive, send)
                return
            scope = self.application_scope(scope)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        elif self._problem is not None:
            problem = self._problem
            warn_once("asgi.problem", "Gateway calls are not mirrored: %s: %s", type(problem).__name__, problem)
        await self.app(scope, receive, send)

    app_guards_pages = False
    """Whether the application rejects unauthenticated requests to unknown routes by another status than 404."""

    def warm_up(self) -> Iterable[Callable[[], object]]:
        """Return functions that do the slow work of a worker's first call. May be overridden."""
        return ()

    def is_call(self, scope: Scope) -> bool:
        """Return whether a request is a model call. May be overridden."""
        if self._is_call is None:
            return is_model_call(scope)
        try:
            return self._is_call(scope)
        except Exception as error:
            warn_once(
                "asgi.is_call",
                "is_call() raised %s; such requests are served and not mirrored. Fix the function that was passed to "
                "the middleware.",
                type(error).__name__,
            )
            return False

    def application_scope(self, scope: Scope) -> Scope:
        """Return the scope for the application. May be overridden."""
        if not self._strip_trace_context:
            return scope
        return {**scope, "headers": [header for header in scope["headers"] if header[0].lower() not in _TRACE_HEADERS]}

    def is_refused(self, call: GatewayCall, scope: Scope) -> bool:
        """Return whether the gateway rejected the caller. May be overridden.

        Such a call is not mirrored, and its probe gets no answer; see
        :meth:`~agent_gateway_client.server.call.GatewayCall.is_refused`.
        """
        return call.is_refused()

    def observe(self, call: GatewayCall, scope: Scope) -> tuple[AbstractContextManager[Any], Finish | None]:
        """Prepare to collect more facts than HTTP shows. May be overridden.

        Returns:
            A context manager to run the application in, and a function that adds facts to the ended call. The function
            runs in the exporter's thread, and its facts take precedence over those of the bodies.
        """
        return _NO_CONTEXT, None

    def attempt_span_id(self, call: GatewayCall) -> int:
        """Return the span id of the current attempt's mirror, for an upstream gateway. May be overridden."""
        return span_id_of_attempt_under_way(call)

    async def _serve_mirrored(
        self, call: GatewayCall, exporter: Exporter, scope: Scope, receive: Receive, send: Send
    ) -> None:
        exchange = Exchange(call, receive, send, keep_request=self._endpoint is None)
        context, finish = self._enter_observation(call, scope) if self._observes else (None, None)
        token = current_call.set(call)
        upstreams = self._upstream_gateways or None
        if upstreams is not None:
            outer = model_call.get()
            model_call.set(UpstreamRequests(call, upstreams, self.attempt_span_id))
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            if not exchange.is_over():
                call.end(error)
            raise
        finally:
            current_call.reset(token)
            if upstreams is not None:
                model_call.set(outer)
            if context is not None:
                with _observe_guard:
                    context.__exit__(*sys.exc_info())
            call.http_status = status_code(call.http_status)
            status = call.http_status or 500
            call.end(str(status) if status >= 400 else None, exchange.last_chunk_ns)
            if self._endpoint is not None and call.endpoint is None:
                call.endpoint = self._endpoint_of(scope)
            if not self.is_refused(call, scope) and (self._may_join is None or await authorize(self._may_join, scope)):
                details = Details(
                    finish, scope, request=exchange.request, response=exchange.response, provider=self._provider
                )
                exporter.submit(call, details)

    async def _serve_page(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer a request for one of the companion's pages. Returns whether it was answered."""
        guard = self.app if self.app_guards_pages else None
        return self.companion is not None and await serve_page(
            self.companion, self._status_token, guard, (scope, receive, send)
        )

    async def _serve_session(
        self, call: GatewayCall, exporter: Exporter, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve a realtime session: one call with any number of answers."""
        call.streaming = True
        session = Session(call, receive, send)
        token, outer = current_call.set(call), model_call.get()
        if self._upstream_gateways:
            model_call.set(UpstreamRequests(call, self._upstream_gateways, self.attempt_span_id))
        try:
            await self.app(scope, session.receive, session.send)
        except BaseException as error:
            call.end(error)
            raise
        finally:
            current_call.reset(token)
            model_call.set(outer)
            end_session(call)
            if self._endpoint is not None and call.endpoint is None:
                call.endpoint = self._endpoint_of(scope)
            if not call.is_refused() and (self._may_join is None or await authorize(self._may_join, scope)):
                exporter.submit(call, session.finish(scope, self._provider))

    def _send_with_probe_answer(self, send: Send, header: tuple[bytes, bytes], call: GatewayCall, scope: Scope) -> Send:
        """Return a ``send`` that adds the probe's answer to the response, unless the caller was rejected."""

        def answering_send(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                call.http_status = status_code(message["status"])
                if not self.is_refused(call, scope):
                    message = {**message, "headers": [*message.get("headers", ()), header]}
            return send(message)

        return answering_send

    def _enter_observation(
        self, call: GatewayCall, scope: Scope
    ) -> tuple[AbstractContextManager[Any] | None, Finish | None]:
        """Enter the context of ``observe()``. An error costs the mirror's details, not the call."""
        finish = None
        with _observe_guard:
            context, finish = self.observe(call, scope)
            if context is not _NO_CONTEXT:
                context.__enter__()
                return context, finish
        return None, finish

    def _endpoint_of(self, scope: Scope) -> str | None:
        if not callable(self._endpoint):
            return self._endpoint
        try:
            name = self._endpoint(scope)
            return None if name is None else str(name)
        except Exception as error:
            warn_once(
                "asgi.endpoint",
                "endpoint() raised %s; the mirrors of such calls have no endpoint. Fix the function that was passed to "
                "the middleware.",
                type(error).__name__,
            )
            return None

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._problem is not None:
            await receive()
            reason = f"{type(self._problem).__name__}: {self._problem}"
            await send({"type": "lifespan.startup.failed", "message": f"agent-gateway-client cannot start: {reason}"})
            return
        if self.companion is not None:
            self.companion.start()
        exporter = self.exporter
        await run_lifespan(self.app, scope, receive, send, lambda: exporter.shutdown() if exporter else None)


_NO_CONTEXT = nullcontext()


_observe_guard = Guard("Could not observe a gateway call; its mirror has only what HTTP shows")


def _address(scope: Scope) -> str | None:
    server = scope.get("server")
    return address(server[0], server[1]) if server else None
