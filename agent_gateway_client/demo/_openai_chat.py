"""OpenAI's chat completions and embeddings, as the local model provider serves them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent_gateway_client.demo._respond import Event, begin, body_of, stream
from agent_gateway_client.demo.behaviour import Behaviour, arguments_for, as_json, count_tokens, text_of

CREATED = 1_700_000_000
"""Unix time, in seconds, of all objects that the provider creates, so that answers are deterministic."""

EMBEDDING_SIZE = 8


def error_body(status: int, message: str) -> dict[str, Any]:
    """Build OpenAI's error object."""
    kind = {401: "invalid_request_error", 429: "rate_limit_error"}.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": str(status)}}


def usage(behaviour: Behaviour, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Build the ``usage`` object of chat completions, in tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": behaviour.cached_tokens(prompt_tokens)},
    }


def model_of(request: Request, body: Mapping[str, Any]) -> str:
    """Return the model's name; for Azure it is the deployment in the path."""
    return str(body.get("model") or request.path_params.get("deployment") or "gpt-4o-mini")


async def chat_completions(request: Request) -> Response:
    """``POST /v1/chat/completions``."""
    body = await body_of(request)
    model = model_of(request, body)
    behaviour = Behaviour.of(model)
    messages = body.get("messages") or [{}]
    prompt = text_of([m.get("content") for m in messages if m.get("role") == "user"][-1:])
    if failed := await begin(behaviour, prompt, error_body):
        return failed

    call = _tool_call(body, messages[-1], prompt)
    text = "" if call else _answer(body, messages[-1], prompt)
    pieces = behaviour.split(text)
    message: dict[str, Any] = {"role": "assistant", "content": None if call else text, "refusal": None}
    if call:
        message["tool_calls"] = [call]
        completion_tokens = count_tokens(call["function"]["arguments"])
    else:
        completion_tokens = len(pieces) if body.get("stream") else count_tokens(text)
    finish = "tool_calls" if call else "stop"
    used = usage(behaviour, count_tokens(messages), completion_tokens)
    head = {"id": "chatcmpl-local", "created": CREATED, "model": model}
    if not body.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": used})

    include_usage = bool((body.get("stream_options") or {}).get("include_usage"))

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        extra = {"usage": None} if include_usage else {}
        return {**head, "object": "chat.completion.chunk", "choices": [choice], **extra}

    if call:
        deltas = [chunk({"tool_calls": [part]}) for part in _tool_call_deltas(call)]
    else:
        deltas = [chunk({"content": piece}) for piece in pieces]
    after: list[Event] = [chunk({}, finish)]
    if include_usage:
        after.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": used})
    return stream(behaviour, [chunk({"role": "assistant", "content": ""})], deltas, [*after, "[DONE]"])


def _tool_call(body: Mapping[str, Any], last: Mapping[str, Any], prompt: str) -> dict[str, Any] | None:
    tools = body.get("tools")
    if not tools or last.get("role") != "user" or body.get("tool_choice") == "none":
        return None
    function = tools[0].get("function", {})
    arguments = as_json(arguments_for(function.get("parameters") or {"type": "object"}, prompt))
    return {
        "id": "call_local",
        "type": "function",
        "function": {"name": function.get("name", "tool"), "arguments": arguments},
    }


def _tool_call_deltas(call: dict[str, Any]) -> list[dict[str, Any]]:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    middle = len(arguments) // 2
    first = {"index": 0, "id": call["id"], "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": part}} for part in (arguments[:middle], arguments[middle:])]
    return [first, *rest]


def _answer(body: Mapping[str, Any], last: Mapping[str, Any], prompt: str) -> str:
    response_format = body.get("response_format") or {}
    if response_format.get("type") == "json_schema":
        return as_json(arguments_for(response_format["json_schema"].get("schema", {}), prompt))
    if response_format.get("type") == "json_object":
        return as_json({"answer": prompt})
    result = text_of(last.get("content")) if last.get("role") == "tool" else None
    return answer_text(prompt, tool_result=result)


def answer_text(prompt: str, *, tool_result: str | None = None) -> str:
    """Return the model's answer, which repeats the prompt or the tool's result."""
    return f"You said: {prompt}" if tool_result is None else f"The tool says: {tool_result}"


async def embeddings(request: Request) -> Response:
    """``POST /v1/embeddings``; one vector per input, in floats or, as the OpenAI SDK requests, in base64."""
    body = await body_of(request)
    model = model_of(request, body)
    behaviour = Behaviour.of(model)
    given = body.get("input", "")
    inputs = given if isinstance(given, list) and not all(isinstance(i, int) for i in given) else [given]
    if failed := await begin(behaviour, text_of(given), error_body):
        return failed
    as_base64 = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(text_of(text), as_base64)}
        for i, text in enumerate(inputs)
    ]
    tokens = count_tokens(inputs)
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": model, "usage": used})


def _vector(text: str, as_base64: bool) -> list[float] | str:
    raw = text.encode()
    values = [sum(raw[i::EMBEDDING_SIZE]) % 256 / 256 for i in range(EMBEDDING_SIZE)]
    return base64.b64encode(struct.pack(f"<{EMBEDDING_SIZE}f", *values)).decode() if as_base64 else values
