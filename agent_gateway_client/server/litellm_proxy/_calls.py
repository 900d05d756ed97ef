"""The requests that a LiteLLM Proxy is serving, put together from what its callbacks tell piece by piece."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from agent_gateway_client._log import warn_once
from agent_gateway_client.server.call import CLIENT_DISCONNECT, MAX_ATTEMPTS, Attempt, GatewayCall
from agent_gateway_client.server.litellm_proxy import _facts as read
from agent_gateway_client.server.litellm_proxy._facts import Facts
from agent_gateway_client.server.reading.responses import model_name
from agent_gateway_client.w3c import TRACEPARENT, extract

MAX_OPEN_CALLS = 10_000
"""Requests with a tracing caller that one process follows at the same time."""

MAX_AGE_SECONDS = 2 * 3600.0
"""A request whose end nobody has told by then is forgotten; LiteLLM's own time limit is 6,000 s by default."""

LATE_EVENT_SECONDS = 30.0
"""LiteLLM logs a success after the response, from a queue. A mirror waits for that so long, and then goes without."""

NO_HOOK_SECONDS = 5.0
"""On a few routes (moderations) the proxy does not tell that it has answered, or with an error in a stream. A request
there is over when nothing more is heard for so long after its success or its failure was logged."""

_MID_STREAM_FALLBACK = "MidStreamFallbackError"
"""LiteLLM's own class for a stream that broke off and is carried on by another deployment."""

Key = tuple[float | str | None, str]
"""When an HTTP request arrived, and its ``traceparent``.

LiteLLM's id of a call does not identify a request: its caller may choose it and send it with every retry, and some
routes are served by a call within a call that has another one. It is used where the arrival is unknown (pass-through).
"""


class _Try(NamedTuple):
    """An attempt, with what tells it from the others.

    Attributes:
        attempt: The attempt.
        deployment: LiteLLM's id of the deployment.
        model: What the provider is asked for. Where the caller can choose that freely (wildcard models, pass-through),
            the attempt gets this name only once the provider has answered.
    """

    attempt: Attempt
    deployment: str | None
    model: str | None


class OpenCall:
    """One request, from the first callback that tells of it until its mirror is handed on.

    Attributes:
        key: Its key in the table.
        call: What is known of it.
        opened: When it was first heard of, on the monotonic clock, in seconds.
        settled: Whether LiteLLM has logged its success.
        iterating: Whether its response is a stream that has begun.
        end_time_ns: When it ended, in nanoseconds since the epoch; ``None`` while it is under way.
        timer: Hands it on in a while, whatever is known then.
        user: Whom LiteLLM knows its caller to be; ``None`` on the few routes where it tells no hook.
    """

    def __init__(self, key: Key, call: GatewayCall, url: Any = None, headers: Facts | None = None) -> None:
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

    def read_request(self, facts: Facts) -> None:
        """Note what kind of call it is, and which endpoint it is for, as soon as that is known."""
        call = self.call
        if call.request_type is None and (call_type := read.call_type(facts)):
            call.request_type, call.operation = call_type, read.operation(call_type)
        call.endpoint = call.endpoint or read.endpoint(facts)

    def begin_attempt(self, details: Facts) -> None:
        """Note that a provider is about to be asked."""
        if self.iterating:
            self._suspected_failure = None
            for broken in self._unfinished():
                broken.attempt.end(_MID_STREAM_FALLBACK)
        chosen = read.deployment(details)
        model = read.text(details.get("model"))
        named_by_configuration = chosen is not None and chosen.names_model
        attempt = Attempt(read.provider(details.get("custom_llm_provider")), model if named_by_configuration else None)
        self._add(_Try(attempt, None if chosen is None else chosen.id, model))

    def end_attempt(self, arguments: Facts, error: BaseException | None = None) -> None:
        """Note that a deployment has answered, and its answer was no stream, or that it has failed."""
        deployment = read.deployment_id(arguments)
        name = None if error is None else read.error_name(error)
        if found := _latest(deployment, self._unfinished()):
            found.attempt.end(name)
        elif error is not None and not self._has_failed(deployment):
            # It failed before the provider was asked.
            attempt = Attempt(read.provider(getattr(error, "llm_provider", None)))
            attempt.end(name)
            self._add(_Try(attempt, deployment, None))

    def succeeded(self, details: Facts, response: Any) -> None:
        """Read what LiteLLM logs of a successful request."""
        payload: Facts = details.get("standard_logging_object") or {}
        self.settled = True
        self.read_request(details)
        self.call.cache_hit = payload.get("cache_hit") is True
        if self.call.cache_hit:
            return
        end_ns = read.nanoseconds(payload.get("endTime"))
        answered = [one for one in self._tries if one.attempt.error_type is None and one.attempt.usage is None]
        found = _latest(read.text(payload.get("model_id")), answered)
        if found is None:
            # Not every provider's part of LiteLLM tells when it asks the provider.
            start_ns = read.nanoseconds(payload.get("startTime")) or self.call.start_time_ns
            found = self._add(_Try(Attempt(start_time_ns=start_ns), None, read.text(details.get("model"))))
        attempt = found.attempt
        attempt.end_time_ns = attempt.end_time_ns or end_ns
        attempt.provider = attempt.provider or read.provider(payload.get("custom_llm_provider"))
        asked = model_name(found.model)
        if attempt.provider is not None or "/" not in (asked or ""):
            # Where no provider is known, the beginning of a name with a slash would read as one.
            attempt.model = attempt.model or asked
            attempt.response_model = model_name(getattr(response, "model", None))
        attempt.usage = read.token_usage(payload)
        attempt.cost = read.cost(payload)
        attempt.finish_reason = read.finish_reason(response)
        if details.get("call_type") == read.PASS_THROUGH:
            # No hook tells of these responses.
            if payload.get("stream") is True:
                first_chunk_ns = read.nanoseconds(payload.get("completionStartTime")) or self.call.start_time_ns
                self.saw_first_chunk(max(first_chunk_ns, self.call.start_time_ns))
            self.end(end_time_ns=end_ns)

    def saw_first_chunk(self, now_ns: int) -> None:
        """Note that the response is a stream, and that its first chunk is about to be sent."""
        self.call.streaming = True
        self.call.http_status = 200
        self.call.time_to_first_chunk_ns = now_ns - self.call.start_time_ns

    def failed(self, request: Facts, error: BaseException) -> None:
        """End the call with the error that its client is told."""
        self.read_request(request)
        name, status = read.error_name(error), read.http_status(error) or 500
        if status == read.CLIENT_CLOSED_REQUEST:
            self.end(CLIENT_DISCONNECT)
        elif self.call.streaming:
            self.end(name)
        else:
            self.call.http_status = status
            self.end(str(status), failure=name)

    def end(self, error: str | None = None, end_time_ns: int | None = None, *, failure: str | None = None) -> None:
        """Note that the request is over. Only the first time counts.

        Args:
            error: What it failed of, if it did.
            end_time_ns: When, in nanoseconds since the epoch; now by default.
            failure: What attempts under way failed of; by default, the same.
        """
        if self.end_time_ns is None:
            self.end_time_ns = end_time_ns or time.time_ns()
            self._error, self._failure = error, failure or error

    def suspect_failure(self, error: BaseException | None) -> None:
        """Note that a stream broke off, for the case that nobody tells of a success or of the client's error."""
        self._suspected_failure = read.error_name(error) if error is not None else "error"

    def scope(self) -> dict[str, Any]:
        """Return the request's ASGI scope, as far as it is known."""
        return read.scope(self._url, self._headers, self.user)

    @property
    def is_suspect(self) -> bool:
        """Whether all that was heard of late is that its stream broke off."""
        return self._suspected_failure is not None

    def close(self) -> GatewayCall:
        """Return the call as it is known now, with an end for all that has none."""
        call = self.call
        if self.end_time_ns is None:
            last_ns = max((one.attempt.end_time_ns or 0 for one in self._tries), default=0)
            self.end(end_time_ns=last_ns or None)
        if self._error is None and not self.settled:
            self._error = self._failure = self._suspected_failure
        unfinished = self._unfinished()
        for one in unfinished:
            # Of several attempts at once, the quickest is taken and the others are given up.
            given_up = self.settled or one is not unfinished[-1]
            one.attempt.error_type = self._failure or ("CancelledError" if given_up else None)
        if self._error is None and call.http_status is None:
            call.http_status = 200
        # No model group of the configuration: a name that the caller made up, or a pass-through route.
        call.endpoint = call.endpoint or call.request_type
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
        """Tell whether the last attempt is a failed one of this deployment.

        LiteLLM serves some routes by a call within a call and tells that both failed, but it is one attempt.
        """
        last = self._tries[-1] if self._tries else None
        return last is not None and last.deployment == deployment and last.attempt.error_type is not None


def _latest(deployment: str | None, tries: list[_Try]) -> _Try | None:
    """Return the last of these attempts that went to a deployment, or else the last."""
    of_deployment = [one for one in tries if one.deployment == deployment]
    return (of_deployment or tries)[-1] if tries else None


class OpenCalls:
    """The requests under way whose callers are tracing, the oldest first. Bounded in number and age.

    Args:
        submit: Takes a request that has ended.
    """

    def __init__(self, submit: Callable[[OpenCall], object]) -> None:
        self._submit = submit
        self._open: dict[Key, OpenCall] = {}
        self._closed: dict[Key, None] = {}
        # Some callbacks come from threads.
        self._lock = threading.Lock()

    def find(self, facts: Facts, *, begin: bool = True) -> OpenCall | None:
        """Return the request that a callback tells of; ``None`` where its caller is not tracing, or it is closed.

        Args:
            facts: What LiteLLM hands to the callback.
            begin: Whether this may be the first callback of a request.
        """
        request = read.server_request(facts)
        headers = request.get("headers")
        if not headers or (traceparent := headers.get(TRACEPARENT)) is None:
            return None
        if request.get("method", "POST") != "POST":
            # It lists or reads what is stored, such as batches; no model is called.
            return None
        key = (request.get("arrival_time") or facts.get("litellm_call_id"), traceparent)
        with self._lock:
            found = self._open.get(key)
            if found is not None or not begin or key in self._closed:
                return found
            parent = extract(headers)
            if parent is None or not parent.sampled or not read.is_from_proxy(facts):
                return None
            # No address: LiteLLM makes a request's URL of the Host header, which its caller wrote.
            call = GatewayCall(parent)
            call.start_time_ns = read.nanoseconds(request.get("arrival_time")) or call.start_time_ns
            self._forget_old()
            self._open[key] = found = OpenCall(key, call, request.get("url"), headers)
            return found

    def close(self, open_call: OpenCall) -> None:
        """Hand a request's call on. Only the first time counts."""
        with self._lock:
            if self._open.pop(open_call.key, None) is None:
                return
            # A callback that comes too late must not begin the request again.
            self._closed[open_call.key] = None
            if len(self._closed) > MAX_OPEN_CALLS:
                del self._closed[next(iter(self._closed))]
        if open_call.timer is not None:
            open_call.timer.cancel()
        self._submit(open_call)

    def close_after(self, seconds: float, open_call: OpenCall) -> None:
        """Hand a request's call on then, unless that has happened before. To be called in the event loop."""
        if open_call.timer is not None:
            open_call.timer.cancel()
        open_call.timer = asyncio.get_running_loop().call_later(seconds, self.close, open_call)

    def close_ended(self) -> None:
        """Hand on all calls that only wait for more to be known of them."""
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
                "LiteLLM has more than %d requests under way, or did not tell the end of one within %.0f s; "
                "the oldest are not mirrored.",
                MAX_OPEN_CALLS,
                MAX_AGE_SECONDS,
            )
