"""The open requests of a LiteLLM Proxy, assembled from the events of its callbacks."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from agent_gateway_client._log import warn_once
from agent_gateway_client.server.call import CLIENT_DISCONNECT, MAX_ATTEMPTS, Attempt, GatewayCall
from agent_gateway_client.server.litellm_proxy import _facts as read
from agent_gateway_client.server.litellm_proxy._facts import Event
from agent_gateway_client.server.reading.responses import model_name
from agent_gateway_client.server.routes import route_of
from agent_gateway_client.w3c import TRACEPARENT, extract

MAX_OPEN_CALLS = 10_000
"""Maximum number of open requests with a tracing caller per process."""

MAX_AGE_SECONDS = 2 * 3600.0
"""Maximum age of an open request; LiteLLM's own timeout is 6,000 s by default."""

LATE_EVENT_SECONDS = 30.0
"""How long a mirror waits for the success event, which LiteLLM sends after the response, from a queue."""

NO_HOOK_SECONDS = 5.0
"""On a few routes (moderations), and for an error inside a stream, the proxy calls no hook at the end. Such a request
ends this long after its last success or failure event."""

_MID_STREAM_FALLBACK = "MidStreamFallbackError"
"""LiteLLM's class for a stream that broke off and is continued by another deployment."""

Key = tuple[float | str | None, str]
"""A request's time of arrival and its ``traceparent``.

LiteLLM's call id does not identify a request: the caller may choose it and send it with every retry, and some routes
make a nested call with a different id. It is used if the time of arrival is unknown (pass-through).
"""


class _Try(NamedTuple):
    """An attempt and what identifies it.

    Attributes:
        attempt: The attempt.
        deployment: LiteLLM's id of the deployment.
        model: The requested model. If the caller can choose it freely (wildcard models, pass-through), the attempt gets
            this name only after the provider has answered.
    """

    attempt: Attempt
    deployment: str | None
    model: str | None


class OpenCall:
    """One request, from its first event until its mirror is submitted.

    Attributes:
        key: Its key in the table.
        call: The call.
        opened: The time of its first event, in seconds of the monotonic clock.
        settled: Whether its success event has arrived.
        iterating: Whether its response is a stream that has started.
        end_time_ns: When it ended, in nanoseconds since the epoch; ``None`` while it is open.
        timer: Submits it later, with the facts known then.
        user: LiteLLM's ``UserAPIKeyAuth`` of the caller; ``None`` on the few routes without hooks.
    """

    def __init__(self, key: Key, call: GatewayCall, url: Any = None, headers: Mapping[str, Any] | None = None) -> None:
        self.key = key
        self.call = call
        self.opened = time.monotonic()
        self.settled = False
        self.iterating = False
        self.end_time_ns: int | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.user: Any = None
        self._url, self._headers = url, headers or {}
        self._tries: list[_Try] = []
        self._error: str | None = None
        self._failure: str | None = None
        self._suspected_failure: str | None = None
        self._route_name: str | None = None

    def read_event(self, event: Event) -> None:
        """Set the call's type and endpoint if the event has them."""
        call = self.call
        if call.request_type is None and (call_type := read.call_type(event)):
            call.request_type, call.operation = call_type, read.operation(call_type)
        call.endpoint = call.endpoint or read.endpoint(event)

    def read_route(self) -> None:
        """Set the call's operation and name by the route, for an event without LiteLLM's type of the call."""
        if route := route_of(self.scope()["path"]):
            self._route_name, self.call.operation = route

    def begin_attempt(self, event: Event) -> None:
        """Start an attempt: a provider is about to be called."""
        if self.iterating:
            self._suspected_failure = None
            for broken in self._unfinished():
                broken.attempt.end(_MID_STREAM_FALLBACK)
        chosen = read.deployment(event)
        model = read.text(event.get("model"))
        named_by_configuration = chosen is not None and chosen.names_model
        attempt = Attempt(read.provider(event.get("custom_llm_provider")), model if named_by_configuration else None)
        self._add(_Try(attempt, None if chosen is None else chosen.id, model))

    def end_attempt(self, event: Event, error: BaseException | None = None) -> None:
        """End an attempt: a deployment has failed, or answered without a stream."""
        deployment = read.deployment_id(event)
        name = None if error is None else read.error_name(error)
        if found := _latest(deployment, self._unfinished()):
            found.attempt.end(name)
        elif error is not None and not self._has_failed(deployment):
            # It failed before the provider was called.
            attempt = Attempt(read.provider(getattr(error, "llm_provider", None)))
            attempt.end(name)
            self._add(_Try(attempt, deployment, None))

    def succeeded(self, event: Event, response: Any) -> None:
        """Read the success event."""
        payload: Mapping[str, Any] = event.get("standard_logging_object") or {}
        self.settled = True
        self.read_event(event)
        self.call.cache_hit = payload.get("cache_hit") is True
        if self.call.cache_hit:
            return
        end_ns = read.nanoseconds(payload.get("endTime"))
        answered = [one for one in self._tries if one.attempt.error_type is None and one.attempt.usage is None]
        found = _latest(read.text(payload.get("model_id")), answered)
        if found is None:
            # Not every provider in LiteLLM sends an event before its call.
            start_ns = read.nanoseconds(payload.get("startTime")) or self.call.start_time_ns
            found = self._add(_Try(Attempt(start_time_ns=start_ns), None, read.text(event.get("model"))))
        attempt = found.attempt
        attempt.end_time_ns = attempt.end_time_ns or end_ns
        attempt.provider = attempt.provider or read.provider(payload.get("custom_llm_provider"))
        requested = model_name(found.model)
        if attempt.provider is not None or "/" not in (requested or ""):
            # Without a provider, the first part of a name with a slash would be taken for one.
            attempt.model = attempt.model or requested
            attempt.response_model = model_name(getattr(response, "model", None))
        attempt.usage = read.token_usage(payload)
        attempt.cost = read.cost(payload)
        attempt.finish_reason = read.finish_reason(response)
        if event.get("call_type") == read.PASS_THROUGH:
            # LiteLLM calls no hook for these responses.
            if payload.get("stream") is True:
                first_chunk_ns = read.nanoseconds(payload.get("completionStartTime")) or self.call.start_time_ns
                self.saw_first_chunk(max(first_chunk_ns, self.call.start_time_ns))
            self.end(end_time_ns=end_ns)

    def saw_first_chunk(self, now_ns: int) -> None:
        """Record that the response is a stream whose first chunk is about to be sent."""
        self.call.streaming = True
        self.call.http_status = 200
        self.call.time_to_first_chunk_ns = now_ns - self.call.start_time_ns

    def failed(self, event: Event, error: BaseException) -> None:
        """End the call with the error that the client gets."""
        self.read_event(event)
        name, status = read.error_name(error), read.http_status(error) or 500
        if status == read.CLIENT_CLOSED_REQUEST:
            self.end(CLIENT_DISCONNECT)
        elif self.call.streaming:
            self.end(name)
        else:
            self.call.http_status = status
            self.end(str(status), failure=name)

    def end(self, error: str | None = None, end_time_ns: int | None = None, *, failure: str | None = None) -> None:
        """End the request. Later calls have no effect.

        Args:
            error: The request's error, if it failed.
            end_time_ns: Nanoseconds since the epoch; now by default.
            failure: The error of open attempts; by default the request's.
        """
        if self.end_time_ns is None:
            self.end_time_ns = end_time_ns or time.time_ns()
            self._error, self._failure = error, failure or error

    def suspect_failure(self, error: BaseException | None) -> None:
        """Record that a stream broke off, in case neither a success event nor the client's error follows."""
        self._suspected_failure = read.error_name(error) if error is not None else "error"

    def scope(self) -> dict[str, Any]:
        """Return the known parts of the request's ASGI scope."""
        return read.scope(self._url, self._headers, self.user)

    @property
    def is_suspect(self) -> bool:
        """Whether its stream broke off and no other event has followed."""
        return self._suspected_failure is not None

    def close(self) -> GatewayCall:
        """End the call and its open attempts with the facts known now, and return it."""
        call = self.call
        if self.end_time_ns is None:
            last_ns = max((one.attempt.end_time_ns or 0 for one in self._tries), default=0)
            self.end(end_time_ns=last_ns or None)
        if self._error is None and not self.settled:
            self._error = self._failure = self._suspected_failure
        unfinished = self._unfinished()
        for one in unfinished:
            # Of concurrent attempts, LiteLLM uses the fastest and cancels the others.
            is_cancelled = self.settled or one is not unfinished[-1]
            one.attempt.error_type = self._failure or ("CancelledError" if is_cancelled else None)
        if self._error is None and call.http_status is None:
            call.http_status = 200
        # Not a model group of the configuration: an unknown name from the caller, or a pass-through route.
        call.endpoint = call.endpoint or call.request_type or self._route_name
        call.end(self._error, self.end_time_ns)
        return call

    def _add(self, one: _Try) -> _Try:
        self.call.add(one.attempt)
        if len(self._tries) < MAX_ATTEMPTS:
            self._tries.append(one)
        return one

    def _unfinished(self) -> list[_Try]:
        return [one for one in self._tries if one.attempt.end_time_ns is None]

    def _has_failed(self, deployment: str | None) -> bool:
        """Return whether the last attempt is a failed one of this deployment.

        On some routes LiteLLM makes a nested call and sends two failure events for one attempt.
        """
        last = self._tries[-1] if self._tries else None
        return last is not None and last.deployment == deployment and last.attempt.error_type is not None


def _latest(deployment: str | None, tries: list[_Try]) -> _Try | None:
    """Return the last of the attempts at a deployment, or else the last attempt."""
    of_deployment = [one for one in tries if one.deployment == deployment]
    return (of_deployment or tries)[-1] if tries else None


class OpenCalls:
    """The open requests whose callers are tracing, oldest first. Bounded in number and age.

    Args:
        submit: Called with each request that has ended.
    """

    def __init__(self, submit: Callable[[OpenCall], object]) -> None:
        self._submit = submit
        self._open: dict[Key, OpenCall] = {}
        self._closed: dict[Key, None] = {}
        # LiteLLM calls some methods in threads.
        self._lock = threading.Lock()

    def find(self, event: Event, *, begin: bool = True) -> OpenCall | None:
        """Return the open request of an event; ``None`` if the caller is not tracing, or the request is closed.

        Args:
            event: The event.
            begin: Whether the event may be the first one of a request.
        """
        request = read.request_in(event)
        headers = request.get("headers")
        if not headers or (traceparent := headers.get(TRACEPARENT)) is None:
            return None
        if request.get("method", "POST") != "POST":
            # It lists or reads stored objects, such as batches; no model is called.
            return None
        key = (request.get("arrival_time") or event.get("litellm_call_id"), traceparent)
        with self._lock:
            found = self._open.get(key)
            if found is not None or not begin or key in self._closed:
                return found
            parent = extract(headers)
            if parent is None or not parent.sampled or not read.is_from_proxy(event):
                return None
            # No address: LiteLLM builds a request's URL from the Host header, which is the caller's text.
            call = GatewayCall(parent)
            call.start_time_ns = read.nanoseconds(request.get("arrival_time")) or call.start_time_ns
            self._forget_old()
            self._open[key] = found = OpenCall(key, call, request.get("url"), headers)
            return found

    def close(self, open_call: OpenCall) -> None:
        """Submit a request's call. Later calls have no effect."""
        with self._lock:
            if self._open.pop(open_call.key, None) is None:
                return
            # A late event must not open the request again.
            self._closed[open_call.key] = None
            if len(self._closed) > MAX_OPEN_CALLS:
                del self._closed[next(iter(self._closed))]
        if open_call.timer is not None:
            open_call.timer.cancel()
        self._submit(open_call)

    def close_after(self, seconds: float, open_call: OpenCall) -> None:
        """Submit a request's call after some seconds, if it is still open. Must be called in the event loop."""
        if open_call.timer is not None:
            open_call.timer.cancel()
        open_call.timer = asyncio.get_running_loop().call_later(seconds, self.close, open_call)

    def close_ended(self) -> None:
        """Submit all calls of ended requests, which wait only for further facts."""
        with self._lock:
            ended = [one for one in self._open.values() if one.settled or one.end_time_ns is not None]
        for open_call in ended:
            self.close(open_call)

    def _forget_old(self) -> None:
        oldest_allowed = time.monotonic() - MAX_AGE_SECONDS
        while self._open:
            key, oldest = next(iter(self._open.items()))
            if len(self._open) < MAX_OPEN_CALLS and oldest.opened >= oldest_allowed:
                return
            del self._open[key]
            warn_once(
                "litellm_proxy.forgotten",
                "LiteLLM has more than %d open requests, or did not report the end of one within %.0f s; the oldest "
                "are not mirrored.",
                MAX_OPEN_CALLS,
                MAX_AGE_SECONDS,
            )
