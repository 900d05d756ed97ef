"""Delays, failures and streams, for all APIs of the local model provider."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from agent_gateway_client.demo.behaviour import (
    LONG_PIECE_INTERVAL_S,
    Behaviour,
    ProviderStreamBroken,
    as_json,
)

Event = Mapping[str, Any] | str
"""The data of one server-sent event: an object, or a literal such as ``[DONE]``."""

ErrorBody = Callable[[int, str], Mapping[str, Any]]


async def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request, or an empty one."""
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


async def begin(behaviour: Behaviour, prompt: str, error: ErrorBody) -> Response | None:
    """Wait for the model's delay, and return the error of a failing model.

    Args:
        behaviour: The model's behaviour.
        prompt: The user's text; repeated in the error message, as real providers may do.
        error: Makes the API's error body from an HTTP status and a message.

    Returns:
        The error response, or None if the model works.
    """
    if behaviour.delay_ms:
        await asyncio.sleep(behaviour.delay_ms / 1000)
    if behaviour.status is None:
        return None
    message = f"The model refused with status {behaviour.status}. The request was: {prompt}"
    return JSONResponse(error(behaviour.status, message), status_code=behaviour.status)


def stream(
    behaviour: Behaviour, before: Iterable[Event], pieces: Iterable[Event], after: Iterable[Event]
) -> StreamingResponse:
    """Stream server-sent events.

    Args:
        behaviour: A ``broken`` model's stream breaks off in the middle of the pieces; a ``long`` model pauses
            after each piece.
        before: Events that open the answer.
        pieces: Events that carry the answer.
        after: Events that close the answer.
    """
    return StreamingResponse(
        _events(behaviour, list(before), list(pieces), list(after)), media_type="text/event-stream"
    )


async def _events(
    behaviour: Behaviour, before: list[Event], pieces: list[Event], after: list[Event]
) -> AsyncIterator[bytes]:
    for event in before:
        yield _encode(event)
    for number, event in enumerate(pieces):
        if behaviour.broken and number >= (len(pieces) + 1) // 2:
            raise ProviderStreamBroken
        yield _encode(event)
        # sleep(0) lets other requests run between two pieces.
        await asyncio.sleep(LONG_PIECE_INTERVAL_S if behaviour.pieces else 0)
    if behaviour.broken:
        raise ProviderStreamBroken
    for event in after:
        yield _encode(event)


def _encode(event: Event) -> bytes:
    if isinstance(event, str):
        return f"data: {event}\n\n".encode()
    # Anthropic's and OpenAI's typed events repeat their type in the event field.
    name = f"event: {event['type']}\n" if isinstance(event.get("type"), str) else ""
    return f"{name}data: {as_json(event)}\n\n".encode()
