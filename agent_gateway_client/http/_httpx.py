"""httpx and httpx2: patches the function that sends all requests of all clients."""

from collections.abc import Callable
from typing import Any

from agent_gateway_client._patching import Switch
from agent_gateway_client.active_span import ModelCall, model_call
from agent_gateway_client.gateways import NO_GATEWAYS
from agent_gateway_client.http import _notes
from agent_gateway_client.http._clients import hook_of
from agent_gateway_client.http._known import known_gateways
from agent_gateway_client.http._opentelemetry import instrumentation_is_loaded, suppress_otel_overwrite
from agent_gateway_client.http._propagate import guard, is_marked, propagate, sent_headers


def _send(original: Callable[..., Any], switch: Switch) -> Any:
    # Python passes on *args as they are, but copies them if there are other parameters.
    def _send_single_request(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return original(*args, **kwargs)
        request = args[1] if len(args) > 1 else kwargs.get("request")
        call = model_call.get()
        _add_headers(args[0], request, call)
        try:
            if instrumentation_is_loaded():
                with suppress_otel_overwrite(sent_headers(request)):
                    response = original(*args, **kwargs)
            else:
                response = original(*args, **kwargs)
        except BaseException as error:
            if call is not None:
                call.failed(error)
            raise
        if call is not None:
            call.answered(response)
        return response

    return _send_single_request


def _async_send(original: Callable[..., Any], switch: Switch) -> Any:
    async def _send_single_request(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(*args, **kwargs)
        request = args[1] if len(args) > 1 else kwargs.get("request")
        call = model_call.get()
        _add_headers(args[0], request, call)
        try:
            if instrumentation_is_loaded():
                with suppress_otel_overwrite(sent_headers(request)):
                    response = await original(*args, **kwargs)
            else:
                response = await original(*args, **kwargs)
        except BaseException as error:
            if call is not None:
                call.failed(error)
            raise
        if call is not None:
            call.answered(response)
        return response

    return _send_single_request


def _add_headers(client: Any, request: Any, call: ModelCall | None) -> None:
    try:
        gateways = known_gateways(call)
        # If only a framework's adapter is active, requests outside of its model calls have no gateways.
        if gateways is not NO_GATEWAYS or is_marked(request) or _notes.is_wanted():
            hook = hook_of(client)
            propagate(request, gateways if hook is None else gateways | hook.gateways)
    except Exception as error:
        guard.caught(error)


REPLACEMENTS = {
    "httpx:Client._send_single_request": _send,
    "httpx:AsyncClient._send_single_request": _async_send,
    "httpx2:Client._send_single_request": _send,
    "httpx2:AsyncClient._send_single_request": _async_send,
}
"""The functions and their replacements while :func:`agent_gateway_client.instrument` is active."""
