"""Adds facts from the bodies to a call, after the call and off the request path."""

import math
from collections.abc import Mapping
from typing import Any

from agent_gateway_client.server.call import CLIENT_DISCONNECT, Attempt, GatewayCall
from agent_gateway_client.server.export import Finish
from agent_gateway_client.server.reading.bodies import CompressedBody, KeptBody
from agent_gateway_client.server.reading.responses import ResponseFacts, model_name, read_requested_model, read_response
from agent_gateway_client.server.routes import model_in_path, route_of


class Details:
    """The bodies of an ended call; reads their facts as the call's ``Finish``.

    Args:
        finish: Adds facts first; they take precedence over those of the bodies.
        scope: The request's ASGI scope after it was served; only the paths of request and route are kept.
        request: The request's body; ``None`` if the endpoint is not named after the requested model.
        response: The response's body; ``None`` if it cannot be read.
        provider: The provider of an attempt that is known only from the response.
    """

    __slots__ = ("_finish", "_path", "_provider", "_request", "_response", "_route")

    def __init__(
        self,
        finish: Finish | None,
        scope: Mapping[str, Any],
        *,
        request: KeptBody | None,
        response: KeptBody | CompressedBody | None,
        provider: str | None,
    ) -> None:
        self._finish = finish
        self._path: str = scope["path"]
        # The path template of FastAPI's router, like "/v1/{model}/chat".
        self._route: str | None = getattr(scope.get("route"), "path", None)
        self._request = request
        self._response = response
        self._provider = provider

    def __call__(self, call: GatewayCall) -> None:
        """Add the facts to the call; see :data:`~agent_gateway_client.server.export.Finish`."""
        try:
            if self._finish is not None:
                self._finish(call)
        finally:
            self._read(call)
            self.release()
            self._finish = None

    def release(self) -> None:
        """Free the bodies."""
        for body in (self._request, self._response):
            if body is not None:
                body.clear()

    def _read(self, call: GatewayCall) -> None:
        route = route_of(self._path)
        if route is not None and call.request_type is None:
            call.request_type, call.operation = route
        if self._response is not None and is_success(call):
            body = self._response.expanded() if isinstance(self._response, CompressedBody) else self._response
            add_facts(call, read_response(body, streaming=bool(call.streaming)), self._provider)
        if self._request is not None and call.endpoint is None:
            # The caller chose this name. If the call succeeded, the endpoint exists; otherwise the name could be any
            # text, so the call is named after its route.
            requested = self._requested_model(self._request) if is_success(call) else None
            call.endpoint = requested or call.request_type or (self._route.strip("/") if self._route else None)

    def _requested_model(self, request: KeptBody) -> str | None:
        return read_requested_model(request) or model_name(model_in_path(self._path))


def is_success(call: GatewayCall) -> bool:
    """Return whether the response's status is a 2xx."""
    return 200 <= (call.http_status or 0) < 300


_RAW_PROXY = "proxy/raw"
"""MLflow's route that forwards the caller's text as the model, which a provider may repeat."""


def add_facts(call: GatewayCall, facts: ResponseFacts, provider: str | None = None) -> None:
    """Add a response's facts to an ended call: to the attempt that it answered, without replacing known facts.

    Args:
        call: The call. If it has no attempts, one is created that lasts as long as the call.
        facts: The response's facts.
        provider: The provider of that attempt, if the gateway does not know it.
    """
    if not facts:
        return
    call.error_type = call.error_type or facts.error_type
    if not call.attempts:
        call.add(Attempt(provider, start_time_ns=call.start_time_ns, error_type=call.error_type))
        call.attempts[0].end_time_ns = call.end_time_ns
    attempt = _attempt_that_answered(call, facts)
    if attempt is None:
        return
    attempt.provider = attempt.provider or provider
    attempt.error_type = attempt.error_type or facts.error_type
    if attempt.model is None or call.request_type != _RAW_PROXY:
        attempt.response_model = attempt.response_model or facts.model
    attempt.usage = attempt.usage or facts.usage
    attempt.cost = attempt.cost or facts.cost
    attempt.finish_reason = attempt.finish_reason or facts.finish_reason


def _attempt_that_answered(call: GatewayCall, facts: ResponseFacts) -> Attempt | None:
    """Return the attempt whose response the caller received; ``None`` if all failed without one."""
    answered = [one for one in call.attempts if one.error_type in (None, call.error_type, CLIENT_DISCONNECT)]
    if call.error_type is None and any(one.error_type is None for one in answered):
        answered = [one for one in answered if one.error_type is None]
    of_model = [one for one in answered if facts.model is not None and facts.model in (one.model, one.response_model)]
    last = None
    for attempt in of_model or answered:
        # Of concurrent attempts, the gateway used the first to end.
        if last is None or attempt.start_time_ns >= _end_ns(last) or _end_ns(attempt) < _end_ns(last):
            last = attempt
    return last


def _end_ns(attempt: Attempt) -> float:
    return math.inf if attempt.end_time_ns is None else attempt.end_time_ns
