"""httpx and httpx2: patches the function that sends all requests of all clients."""

from collections.abc import Callable
from typing import Any

from agent_gateway_client._patching import Switch
from agent_gateway_client.active_span import model_call
from agent_gateway_client.http._known import known_gateways, may_carry
from agent_gateway_client.http._opentelemetry import suppress_otel_overwrite
from agent_gateway_client.http._propagate import propagate, sent_headers


def _send(original: Callable[..., Any], switch: Switch) -> Any:
    def _send_single_request(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(client, request, *args, **kwargs)
        call = model_call.get()
        try:
            if may_carry(request, call):
                propagate(request, known_gateways(call, client))
                with suppress_otel_overwrite(sent_headers(request)):
                    response = original(client, request, *args, **kwargs)
            else:
                response = original(client, request, *args, **kwargs)
        except BaseException as error:
            if call is not None:
                call.failed(error)
            raise
        if call is not None:
            call.answered(response)
        return response

    return _send_single_request


def _async_send(original: Callable[..., Any], switch: Switch) -> Any:
    async def _send_single_request(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(client, request, *args, **kwargs)
        call = model_call.get()
        try:
            if may_carry(request, call):
                propagate(request, known_gateways(call, client))
                with suppress_otel_overwrite(sent_headers(request)):
                    response = await original(client, request, *args, **kwargs)
            else:
                response = await original(client, request, *args, **kwargs)
        except BaseException as error:
            if call is not None:
                call.failed(error)
            raise
        if call is not None:
            call.answered(response)
        return response

    return _send_single_request


REPLACEMENTS = {
    "httpx:Client._send_single_request": _send,
    "httpx:AsyncClient._send_single_request": _async_send,
    "httpx2:Client._send_single_request": _send,
    "httpx2:AsyncClient._send_single_request": _async_send,
}
"""The functions and their replacements while :func:`agent_gateway_client.instrument` is active."""
