"""httpx and httpx2: patches the function that sends all requests of all clients."""

from collections.abc import Callable
from typing import Any

from agent_gateway_client._patching import Switch
from agent_gateway_client.active_span import ModelCall, model_call
from agent_gateway_client.gateways import NO_GATEWAYS
from agent_gateway_client.http import _notes
from agent_gateway_client.http._known import known_gateways
from agent_gateway_client.http._opentelemetry import instrumentation_is_loaded, suppress_otel_overwrite
from agent_gateway_client.http._propagate import guard, is_marked, propagate, sent_headers


def _send(original: Callable[..., Any], switch: Switch) -> Any:
    def _send_single_request(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(client, request, *args, **kwargs)
        call = model_call.get()
        _add_headers(client, request, call)
        send = keeping_header if instrumentation_is_loaded() else original
        try:
            response = send(client, request, *args, **kwargs)
        except BaseException as error:
            if call is not None:
                call.failed(error)
            raise
        if call is not None:
            call.answered(response)
        return response

    def keeping_header(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        with suppress_otel_overwrite(sent_headers(request)):
            return original(client, request, *args, **kwargs)

    return _send_single_request


def _async_send(original: Callable[..., Any], switch: Switch) -> Any:
    async def _send_single_request(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(client, request, *args, **kwargs)
        call = model_call.get()
        _add_headers(client, request, call)
        send = keeping_header if instrumentation_is_loaded() else original
        try:
            response = await send(client, request, *args, **kwargs)
        except BaseException as error:
            if call is not None:
                call.failed(error)
            raise
        if call is not None:
            call.answered(response)
        return response

    async def keeping_header(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        with suppress_otel_overwrite(sent_headers(request)):
            return await original(client, request, *args, **kwargs)

    return _send_single_request


def _add_headers(client: Any, request: Any, call: ModelCall | None) -> None:
    try:
        gateways = known_gateways(call, client)
        # If only a framework's adapter is active, requests outside of its model calls have no gateways.
        if gateways is not NO_GATEWAYS or is_marked(request) or _notes.is_wanted():
            propagate(request, gateways)
    except Exception as error:
        guard.caught(error)


REPLACEMENTS = {
    "httpx:Client._send_single_request": _send,
    "httpx:AsyncClient._send_single_request": _async_send,
    "httpx2:Client._send_single_request": _send,
    "httpx2:AsyncClient._send_single_request": _async_send,
}
"""The functions and their replacements while :func:`agent_gateway_client.instrument` is active."""
