"""OpenAI's smaller APIs, as the local model provider serves them: the minimum that the OpenAI SDK accepts."""

from __future__ import annotations

import base64
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent_gateway_client.demo._openai_chat import CREATED, answer_text, error_body, model_of, usage
from agent_gateway_client.demo._respond import Event, begin, body_of, stream
from agent_gateway_client.demo.behaviour import Behaviour, count_tokens, text_of

MODELS = ("gpt-4o-mini", "text-embedding-3-small", "claude-3-5-haiku-latest", "gemini-2.0-flash")

# The smallest PNG there is: one transparent pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


async def models(request: Request) -> Response:
    """``GET /v1/models``."""
    data = [{"id": name, "object": "model", "created": CREATED, "owned_by": "local"} for name in MODELS]
    return JSONResponse({"object": "list", "data": data})


async def completions(request: Request) -> Response:
    """``POST /v1/completions``."""
    body = await body_of(request)
    model = model_of(request, body)
    behaviour = Behaviour.of(model)
    prompt = text_of(body.get("prompt", ""))
    if failed := await begin(behaviour, prompt, error_body):
        return failed
    text = answer_text(prompt)
    pieces = behaviour.split(text)
    head = {"id": "cmpl-local", "object": "text_completion", "created": CREATED, "model": model}

    def choice(part: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": part, "finish_reason": finish, "logprobs": None}

    used = usage(behaviour, count_tokens(prompt), len(pieces) if body.get("stream") else count_tokens(text))
    if not body.get("stream"):
        return JSONResponse({**head, "choices": [choice(text, "stop")], "usage": used})
    parts: list[Event] = [{**head, "choices": [choice(piece, None)]} for piece in pieces]
    after: list[Event] = [{**head, "choices": [choice("", "stop")]}]
    if (body.get("stream_options") or {}).get("include_usage"):
        after.append({**head, "choices": [], "usage": used})
    return stream(behaviour, [], parts, [*after, "[DONE]"])


async def moderations(request: Request) -> Response:
    """``POST /v1/moderations``; nothing is ever flagged."""
    body = await body_of(request)
    model = str(body.get("model", "omni-moderation-latest"))
    given = body.get("input", "")
    if failed := await begin(Behaviour.of(model), text_of(given), error_body):
        return failed
    result = {"flagged": False, "categories": {}, "category_scores": {}, "category_applied_input_types": {}}
    count = len(given) if isinstance(given, list) else 1
    return JSONResponse({"id": "modr-local", "model": model, "results": [result] * count})


async def images(request: Request) -> Response:
    """``POST /v1/images/generations``; every image is one transparent pixel."""
    body = await body_of(request)
    if failed := await begin(Behaviour.of(str(body.get("model"))), text_of(body.get("prompt")), error_body):
        return failed
    image = {"b64_json": base64.b64encode(PIXEL).decode()}
    return JSONResponse({"created": CREATED, "data": [image] * int(body.get("n") or 1)})


async def transcriptions(request: Request) -> Response:
    """``POST /v1/audio/transcriptions``."""
    model = _form_field(await request.body(), "model")
    if failed := await begin(Behaviour.of(model), "a recording", error_body):
        return failed
    return JSONResponse({"text": "What was said."})


async def speech(request: Request) -> Response:
    """``POST /v1/audio/speech``; returns the bytes of the input as the audio."""
    body = await body_of(request)
    text = text_of(body.get("input"))
    if failed := await begin(Behaviour.of(str(body.get("model"))), text, error_body):
        return failed
    return Response(text.encode(), media_type="audio/mpeg")


class Files:
    """The files and batches of one provider, in memory. Three files exist at start."""

    def __init__(self) -> None:
        self._files = [_file(i, f"file-{i}.jsonl", 10) for i in range(3)]
        self._batches: list[dict[str, Any]] = []

    async def list_files(self, request: Request) -> Response:
        """``GET /v1/files?after=…&limit=…``."""
        return _page(self._files, request)

    async def upload(self, request: Request) -> Response:
        """``POST /v1/files``."""
        raw = await request.body()
        name = re.search(rb'filename="([^"]*)"', raw)
        self._files.append(_file(len(self._files), name[1].decode() if name else "upload", len(raw)))
        return JSONResponse(self._files[-1])

    async def create_batch(self, request: Request) -> Response:
        """``POST /v1/batches``."""
        body = await body_of(request)
        self._batches.append(
            {
                "id": f"batch_{len(self._batches)}",
                "object": "batch",
                "endpoint": body.get("endpoint", "/v1/chat/completions"),
                "input_file_id": body.get("input_file_id", "file-0"),
                "completion_window": body.get("completion_window", "24h"),
                "created_at": CREATED,
                "status": "validating",
            }
        )
        return JSONResponse(self._batches[-1])

    async def list_batches(self, request: Request) -> Response:
        """``GET /v1/batches?after=…&limit=…``."""
        return _page(self._batches, request)


def _file(number: int, name: str, size: int) -> dict[str, Any]:
    return {
        "id": f"file-{number}",
        "object": "file",
        "bytes": size,
        "created_at": CREATED,
        "filename": name,
        "purpose": "batch",
        "status": "processed",
    }


def _page(entries: list[dict[str, Any]], request: Request) -> Response:
    ids = [entry["id"] for entry in entries]
    after = request.query_params.get("after")
    start = ids.index(after) + 1 if after in ids else 0
    limit = int(request.query_params.get("limit", 20))
    data = entries[start : start + limit]
    return JSONResponse(
        {
            "object": "list",
            "data": data,
            "has_more": start + limit < len(entries),
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }
    )


def _form_field(raw: bytes, name: str) -> str:
    match = re.search(rb'name="' + name.encode() + rb'"\r\n\r\n(.*?)\r\n', raw, re.DOTALL)
    return match[1].decode() if match else ""
