"""The callback that LiteLLM calls at each step of a request."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from functools import partial
from threading import Thread
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import version_of, warn_once
from agent_gateway_client.active_span import model_call
from agent_gateway_client.server.authorization import MAX_SECONDS, MayJoin, authorize, timeouts
from agent_gateway_client.server.call import CLIENT_DISCONNECT, GatewayCall
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.litellm_proxy._calls import LATE_EVENT_SECONDS, NO_HOOK_SECONDS, OpenCall, OpenCalls
from agent_gateway_client.server.litellm_proxy._facts import Event, ends_stream, http_status, is_from_proxy
from agent_gateway_client.server.litellm_proxy._requests import current_request
from agent_gateway_client.server.observed.companion import Companion
from agent_gateway_client.server.probe import answer, scan_headers
from agent_gateway_client.server.upstreams import UpstreamRequests, instrument_upstreams, span_id_of_attempt_under_way


class LiteLLMProxyMirror(CustomLogger):
    """Mirrors the requests of a LiteLLM Proxy into their callers' traces.

    Args:
        exporter: Sends the calls.
        may_join: Returns whether a request may join the trace of its ``traceparent``. It gets ``path`` and ``headers``
            of the ASGI scope, and as ``user`` LiteLLM's ``UserAPIKeyAuth``, which is ``None`` on routes without hooks
            (pass-through).

    Raises:
        ConfigurationError: ``AGENT_GATEWAY_URLS``, the upstream gateways, has a value that is not a URL.
    """

    def __init__(self, exporter: Exporter, may_join: MayJoin | None = None) -> None:
        super().__init__()
        self._may_join = may_join
        self._deciding: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._stopped_waiting = False
        self._upstream_gateways = instrument_upstreams()
        self.exporter = exporter
        self.companion = Companion(exporter, may_join, self._upstream_gateways)
        if not hasattr(CustomLogger, "async_post_call_failure_deployment_hook"):
            warn_once(
                "litellm_proxy.failures",
                "litellm %s does not report why an attempt has failed if another one follows; its error in mirrors is "
                "CancelledError. Upgrade to litellm 1.100 or newer.",
                version_of("litellm"),
            )
        self._calls = OpenCalls(self._submit)

    def shutdown(self) -> None:
        """Send the calls of all requests that have ended."""
        self._is_stopping = True
        self._calls.close_ended()
        self.exporter.shutdown()

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: Any,
        request_kwargs: Event | None = None,
        parent_otel_span: Any = None,
    ) -> list[Any]:
        """A deployment is about to be chosen, in the task that will call its provider. Filters nothing."""
        with _guard:
            if self._upstream_gateways and (open_call := self._calls.find(request_kwargs or {})):
                span_id = partial(_attempt_span_id, open_call)
                model_call.set(UpstreamRequests(open_call.call, self._upstream_gateways, span_id))
        return healthy_deployments

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: Event) -> None:
        """A provider is about to be called, or the proxy logs that it rejected a request."""
        with _guard:
            if open_call := self._calls.find(kwargs):
                open_call.read_event(kwargs)
                if _NO_PROVIDER_IS_CALLED not in kwargs:
                    open_call.begin_attempt(kwargs)

    async def async_post_call_success_deployment_hook(self, request_data: Event, response: Any, call_type: Any) -> None:
        """A deployment has answered without a stream."""
        with _guard:
            if open_call := self._calls.find(request_data, begin=False):
                open_call.end_attempt(request_data)

    async def async_post_call_failure_deployment_hook(
        self, request_data: Event, exception: Exception, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        """A deployment has failed; another may follow."""
        with _guard:
            if open_call := self._calls.find(request_data):
                open_call.end_attempt(request_data, exception)

    async def async_post_call_success_hook(self, data: Event, user_api_key_dict: Any, response: Any) -> None:
        """The response is ready and not a stream."""
        with _guard:
            if open_call := self._calls.find(data):
                open_call.user = user_api_key_dict
                open_call.read_event(data)
                open_call.call.streaming = False
                self._end(open_call)

    async def async_post_call_failure_hook(
        self, request_data: Event, original_exception: Exception, user_api_key_dict: Any, traceback_str: Any = None
    ) -> None:
        """The client gets an error."""
        with _guard:
            refused = _refused_by_key_checks(request_data, original_exception, user_api_key_dict)
            event = refused or request_data
            if open_call := self._calls.find(event):
                open_call.user = user_api_key_dict
                if refused:
                    open_call.read_route()
                open_call.failed(event, original_exception)
                self._calls.close(open_call)

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: AsyncIterable[Any], request_data: Event
    ) -> AsyncGenerator[Any, None]:
        """The response is a stream, which is passed on unchanged."""
        open_call = None
        with _guard:
            if open_call := self._calls.find(request_data):
                open_call.user = user_api_key_dict
                open_call.read_event(request_data)
                open_call.iterating = True
        now_ns: int | None = None
        last_chunks: deque[Any] = deque(maxlen=2)
        try:
            async for chunk in response:
                if open_call is not None:
                    # Taken before the chunk is sent, so that the client's span contains the mirror.
                    is_first, now_ns = now_ns is None, time.time_ns()
                    if is_first:
                        open_call.saw_first_chunk(now_ns)
                    last_chunks.append(chunk)
                yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            with _guard:
                # Many clients disconnect as soon as they have the last event.
                is_complete = any(map(ends_stream, last_chunks))
                self._end(open_call, None if is_complete else CLIENT_DISCONNECT, now_ns if is_complete else None)
            raise
        except Exception as error:
            with _guard:
                if open_call is not None:
                    # On most routes the failure hook follows, with the HTTP status.
                    open_call.suspect_failure(error)
                    self._calls.close_after(NO_HOOK_SECONDS, open_call)
            raise
        with _guard:
            self._end(open_call, end_time_ns=now_ns)

    async def async_log_success_event(self, kwargs: Event, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """The request's tokens and cost are known."""
        with _guard:
            if open_call := self._calls.find(kwargs, begin=False):
                open_call.succeeded(kwargs, response_obj)
                if open_call.end_time_ns is not None:
                    self._calls.close(open_call)
                elif not open_call.iterating:
                    self._calls.close_after(NO_HOOK_SECONDS, open_call)

    async def async_log_failure_event(self, kwargs: Event, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """The request's first failure. Needed if LiteLLM puts an error into a stream and calls no other hook."""
        with _guard:
            open_call = self._calls.find(kwargs, begin=False)
            if open_call is not None and open_call.iterating:
                open_call.suspect_failure(kwargs.get("exception"))
                if open_call.end_time_ns is not None:
                    self._calls.close_after(NO_HOOK_SECONDS, open_call)

    async def async_post_call_response_headers_hook(
        self,
        data: Event,
        user_api_key_dict: Any,
        response: Any,
        request_headers: Mapping[str, str] | None = None,
        litellm_call_info: Any = None,
    ) -> dict[str, str] | None:
        """Answer the probe of a caller that the proxy has authenticated."""
        with _guard:
            lines = [(name.encode(), value.encode()) for name, value in (request_headers or {}).items()]
            _, is_probe = scan_headers(lines)
            if is_probe:
                name, value = answer(lines, self.exporter)
                return {name.decode(): value.decode()}
        return None

    def _submit(self, open_call: OpenCall) -> None:
        call = open_call.close()
        if self._may_join is None:
            self.exporter.submit(call)
            return
        before = timeouts()
        deciding = self._submit_if_it_joins(call, self._may_join, open_call.scope())
        try:
            loop = None if self._is_stopping else asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None:
            # The loop is stopping, or this thread has no loop.
            if self._stopped_waiting:
                deciding.close()
                return
            thread = Thread(target=asyncio.run, args=(deciding,), name="agent-gateway-authorize", daemon=True)
            thread.start()
            thread.join(MAX_SECONDS + 1.0)
            # After a timeout, do not wait again for each further call at a stop.
            self._stopped_waiting = thread.is_alive() or timeouts() > before
        else:
            task = loop.create_task(deciding)
            self._deciding.add(task)
            task.add_done_callback(self._deciding.discard)

    async def _submit_if_it_joins(self, call: GatewayCall, may_join: MayJoin, scope: dict[str, Any]) -> None:
        if await authorize(may_join, scope):
            self.exporter.submit(call)

    def _end(self, open_call: OpenCall | None, error: str | None = None, end_time_ns: int | None = None) -> None:
        if open_call is None:
            return
        open_call.end(error, end_time_ns)
        # After a broken stream LiteLLM's event has estimates, or does not come.
        if open_call.settled or error is not None:
            self._calls.close(open_call)
        else:
            self._calls.close_after(NO_HOOK_SECONDS if open_call.is_suspect else LATE_EVENT_SECONDS, open_call)


def _refused_by_key_checks(event: Event, error: BaseException, user: Any) -> Event | None:
    """Return the event of a model call that LiteLLM refused, for a limit of its key's owner, before it wrote into it.

    LiteLLM's event is then the caller's body, of which only the model is used, if it is one of the proxy's. The user
    has a token only if the key is valid.
    """
    if getattr(user, "token", None) is None or http_status(error) in (401, 403) or is_from_proxy(event):
        return None
    request = current_request()
    return {"proxy_server_request": request, "model": event.get("model")} if request else None


def _attempt_span_id(open_call: OpenCall, call: GatewayCall) -> int:
    if call.attempt_under_way() is None:
        # Not every provider in LiteLLM sends an event before its call.
        open_call.begin_attempt({})
    return span_id_of_attempt_under_way(call)


_NO_PROVIDER_IS_CALLED = "litellm_no_upstream_llm_call"
"""LiteLLM sets this key in the event of a request that the proxy itself has rejected."""

_guard = Guard("Could not read an event of LiteLLM; mirrors may be missing or incomplete", "litellm")
