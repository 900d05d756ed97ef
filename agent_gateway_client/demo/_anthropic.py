"""Anthropic's Messages API, as the local model provider serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent_gateway_client.demo._openai_chat import answer_text
from agent_gateway_client.demo._respond import Event, begin, body_of, stream
from agent_gateway_client.demo.behaviour import Behaviour, arguments_for, as_json, count_tokens, text_of


def error_body(status: int, message: str) -> dict[str, Any]:
    """Build Anthropic's error object."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


async def messages(request: Request) -> Response:
    """``POST /v1/messages``."""
    body = await body_of(request)
    model = str(body.get("model", "claude-3-5-haiku-latest"))
    behaviour = Behaviour.of(model)
    given = body.get("messages") or [{}]
    results = _blocks(given[-1], "tool_result")
    prompt = text_of([m.get("content") for m in given if m.get("role") == "user"][-1:])
    if failed := await begin(behaviour, prompt, error_body):
        return failed

    tools = body.get("tools")
    pieces: list[str]
    if tools and not results:
        arguments = arguments_for(tools[0].get("input_schema") or {"type": "object"}, prompt)
        block = {"type": "tool_use", "id": "toolu_local", "name": tools[0].get("name"), "input": arguments}
        pieces, stop = [as_json(arguments)], "tool_use"
    else:
        result = text_of(results[-1].get("content")) if results else None
        text = answer_text(prompt, tool_result=result)
        pieces = behaviour.split(text) if body.get("stream") else [text]
        block, stop = {"type": "text", "text": "".join(pieces)}, "end_turn"

    prompt_tokens = count_tokens([body.get("system") or "", given])
    output_tokens = len(pieces) if body.get("stream") else count_tokens(pieces[0])
    cached = behaviour.cached_tokens(prompt_tokens)
    # Anthropic's input_tokens leave out the tokens read from the cache.
    used = {"input_tokens": prompt_tokens - cached, "output_tokens": output_tokens}
    if behaviour.cached:
        used |= {"cache_read_input_tokens": cached, "cache_creation_input_tokens": 0}
    message = {
        "id": "msg_local",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": used,
    }
    if not body.get("stream"):
        return JSONResponse(message)
    return stream(behaviour, *_events(message, block, pieces))


def _blocks(message: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [b for b in content if b.get("type") == kind] if isinstance(content, list) else []


def _events(
    message: dict[str, Any], block: dict[str, Any], pieces: list[str]
) -> tuple[list[Event], list[Event], list[Event]]:
    used = message["usage"]
    begun = {**message, "content": [], "stop_reason": None, "usage": {**used, "output_tokens": 0}}
    is_tool = block["type"] == "tool_use"
    empty = {**block, "input": {}} if is_tool else {**block, "text": ""}
    kind, key = ("input_json_delta", "partial_json") if is_tool else ("text_delta", "text")
    before: list[Event] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": empty},
    ]
    deltas: list[Event] = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": kind, key: piece}} for piece in pieces
    ]
    ended = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    after: list[Event] = [
        {"type": "content_block_stop", "index": 0},
        # Anthropic's API repeats the input tokens here, and some clients read only these.
        {"type": "message_delta", "delta": ended, "usage": used},
        {"type": "message_stop"},
    ]
    return before, deltas, after
