"""Gemini's generateContent and streamGenerateContent, as the local model provider serves them."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent_gateway_client.demo._openai_chat import answer_text
from agent_gateway_client.demo._respond import Event, begin, body_of, stream
from agent_gateway_client.demo.behaviour import Behaviour, arguments_for, count_tokens, text_of


def error_body(status: int, message: str) -> dict[str, Any]:
    """Build Google's error object."""
    name = {401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}.get(status, "INTERNAL")
    return {"error": {"code": status, "message": message, "status": name}}


async def generate(request: Request) -> Response:
    """``POST /v1beta/models/{model}:generateContent`` and ``:streamGenerateContent``."""
    model, _, method = request.path_params["call"].rpartition(":")
    body = await body_of(request)
    behaviour = Behaviour.of(model)
    contents = body.get("contents") or [{}]
    prompt = text_of([c.get("parts") for c in contents if c.get("role", "user") == "user"][-1:])
    if failed := await begin(behaviour, prompt, error_body):
        return failed

    streamed = method == "streamGenerateContent"
    last_parts = contents[-1].get("parts") or []
    results = [part["functionResponse"] for part in last_parts if "functionResponse" in part]
    functions = [f for tool in body.get("tools") or [] for f in tool.get("functionDeclarations") or []]
    parts: list[dict[str, Any]]
    if functions and not results:
        arguments = arguments_for(functions[0].get("parameters") or {"type": "object"}, prompt)
        parts = [{"functionCall": {"name": functions[0].get("name"), "args": arguments}}]
    else:
        text = answer_text(prompt, tool_result=text_of(results[-1].get("response")) if results else None)
        parts = [{"text": piece} for piece in (behaviour.split(text) if streamed else [text])]

    prompt_tokens = count_tokens(contents)
    candidate_tokens = len(parts) if streamed else count_tokens(parts)
    used = {
        "promptTokenCount": prompt_tokens,
        "candidatesTokenCount": candidate_tokens,
        "totalTokenCount": prompt_tokens + candidate_tokens,
    }
    if behaviour.cached:
        used["cachedContentTokenCount"] = behaviour.cached_tokens(prompt_tokens)

    def answer(some: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
        candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": some}}
        if finish:
            candidate["finishReason"] = finish
        head = {"candidates": [candidate], "modelVersion": model, "responseId": "gemini-local"}
        return {**head, "usageMetadata": used} if finish else head

    if not streamed:
        return JSONResponse(answer(parts, "STOP"))
    last: list[Event] = [answer([{"text": ""}], "STOP")]
    return stream(behaviour, [], [answer([part], None) for part in parts], last)
