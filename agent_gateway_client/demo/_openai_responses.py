"""OpenAI's Responses API, as the local model provider serves it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent_gateway_client.demo._openai_chat import CREATED, answer_text, error_body, model_of
from agent_gateway_client.demo._respond import Event, begin, body_of, stream
from agent_gateway_client.demo.behaviour import Behaviour, arguments_for, as_json, count_tokens, text_of


async def responses(request: Request) -> Response:
    """``POST /v1/responses``, as one object or as events up to ``response.completed``."""
    body = await body_of(request)
    model = model_of(request, body)
    behaviour = Behaviour.of(model)
    given = body.get("input", "")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given or [{}]
    prompt = text_of([item.get("content") for item in items if item.get("role") == "user"][-1:])
    if failed := await begin(behaviour, prompt, error_body):
        return failed

    item, pieces = _output_item(behaviour, body, items[-1], prompt)
    text = "".join(pieces)
    input_tokens = count_tokens([body.get("instructions") or "", items])
    output_tokens = len(pieces) if body.get("stream") else count_tokens(text)
    response = {
        "id": "resp_local",
        "object": "response",
        "created_at": CREATED,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": {},
        "model": model,
        "output": [item],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": behaviour.cached_tokens(input_tokens)},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input_tokens + output_tokens,
        },
    }
    if not body.get("stream"):
        return JSONResponse(response)
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    return stream(behaviour, *_numbered(begun, _item_events(item, pieces), response))


def _output_item(
    behaviour: Behaviour, body: Mapping[str, Any], last: Mapping[str, Any], prompt: str
) -> tuple[dict[str, Any], list[str]]:
    tools = [tool for tool in body.get("tools") or [] if tool.get("type") == "function"]
    if tools and last.get("role") == "user" and body.get("tool_choice") != "none":
        arguments = as_json(arguments_for(tools[0].get("parameters") or {"type": "object"}, prompt))
        call = {
            "id": "fc_local",
            "type": "function_call",
            "status": "completed",
            "call_id": "call_local",
            "name": tools[0].get("name", "tool"),
            "arguments": arguments,
        }
        return call, [arguments]
    wanted = (body.get("text") or {}).get("format") or {}
    result = text_of(last.get("output")) if last.get("type") == "function_call_output" else None
    text = answer_text(prompt, tool_result=result)
    if wanted.get("type") == "json_schema":
        text = as_json(arguments_for(wanted.get("schema", {}), prompt))
    pieces = behaviour.split(text) if body.get("stream") else [text]
    content = {"type": "output_text", "text": "".join(pieces), "annotations": [], "logprobs": []}
    message = {"id": "msg_local", "type": "message", "status": "completed", "role": "assistant"}
    return {**message, "content": [content]}, pieces


def _item_events(item: dict[str, Any], pieces: list[str]) -> tuple[list[Any], list[Any], list[Any]]:
    place = {"item_id": item["id"], "output_index": 0}
    open_item = {**item, "status": "in_progress"}
    if item["type"] == "function_call":
        kind = "response.function_call_arguments"
        done_text = {"arguments": item["arguments"], "name": item["name"]}
        empty_item = {**open_item, "arguments": ""}
        parts: list[dict[str, Any]] = []
    else:
        kind = "response.output_text"
        done_text = {"text": item["content"][0]["text"], "logprobs": []}
        place["content_index"] = 0
        empty_item = {**open_item, "content": []}
        parts = [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
    extra: dict[str, Any] = {"logprobs": []} if parts else {}
    opening: list[Any] = [{"type": "response.output_item.added", "output_index": 0, "item": empty_item}]
    opening += [{"type": "response.content_part.added", **place, "part": part} for part in parts]
    deltas = [{"type": f"{kind}.delta", **place, "delta": piece, **extra} for piece in pieces]
    closing: list[Any] = [{"type": f"{kind}.done", **place, **done_text}]
    if parts:
        closing.append({"type": "response.content_part.done", **place, "part": item["content"][0]})
    closing.append({"type": "response.output_item.done", "output_index": 0, "item": item})
    return opening, deltas, closing


def _numbered(
    begun: dict[str, Any], item_events: tuple[list[Any], list[Any], list[Any]], response: dict[str, Any]
) -> tuple[list[Event], list[Event], list[Event]]:
    opening, deltas, closing = item_events
    started = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    numbers = count()

    def number(events: list[Any]) -> list[Event]:
        return [{**event, "sequence_number": next(numbers)} for event in events]

    completed = {"type": "response.completed", "response": response}
    return number([*started, *opening]), number(deltas), number([*closing, completed])
