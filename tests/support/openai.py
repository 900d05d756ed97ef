"""OpenAI clients that send to a ``Wire``, one call of each kind, and answers that the SDK can parse."""

import base64
import json
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

import openai
from pydantic import BaseModel

from tests.support.client import Wire, value_of

CLIENTS = ["OpenAI", "AsyncOpenAI", "AzureOpenAI", "AsyncAzureOpenAI"]

STACK = import_module("httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx")
"""The library of the SDK's own HTTP client."""


def make_client(kind: str, wire: Wire, **options: Any) -> Any:
    """Return one of the SDK's clients that sends to the wire, by default with a gateway's URL."""
    if "Azure" in kind:
        options = {"azure_endpoint": "http://gw.test:5000/azure", "api_version": "2025-01-01", **options}
    else:
        options = {"base_url": "http://gw.test:5000/gateway/openai/v1", **options}
    # Like the SDK's default, it follows redirects.
    http_class = STACK.AsyncClient if kind.startswith("Async") else STACK.Client
    http_client = options.pop("http_client", None)
    http_client = http_client or http_class(transport=STACK.MockTransport(wire), follow_redirects=True)
    return getattr(openai, kind)(api_key="key", http_client=http_client, **options)


class Reply(BaseModel):
    word: str


_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
_MESSAGE = {"role": "assistant", "content": '{"word": "hi"}'}
_CHAT = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": _MESSAGE}],
    "usage": _USAGE,
}
_CHUNKS = [
    {
        **_CHAT,
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        "usage": None,
    }
    for delta, finish in ((_MESSAGE, None), ({}, "stop"))
]
_RESPONSE = {
    "id": "r1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "parallel_tool_calls": False,
    "tool_choice": "auto",
    "tools": [],
    "output": [
        {
            "id": "o1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": '{"word": "hi"}', "annotations": []}],
        }
    ],
}
_EVENTS = [
    {"type": "response.created", "sequence_number": 0, "response": {**_RESPONSE, "output": []}},
    {"type": "response.completed", "sequence_number": 1, "response": _RESPONSE},
]
_FILE = {"id": "f1", "object": "file", "bytes": 1, "created_at": 1, "filename": "a", "purpose": "batch"}
_BATCH = {"id": "b1", "object": "batch", "status": "completed"}
_EMBEDDING = {"index": 0, "object": "embedding", "embedding": [0.5]}
_IMAGE = {"created": 1, "data": [{"b64_json": base64.b64encode(b"png").decode()}]}
_BODIES: dict[str, Any] = {
    "/chat/completions": _CHAT,
    "/responses": _RESPONSE,
    "/completions": {**_CHAT, "object": "text_completion", "choices": [{"index": 0, "text": "hi"}]},
    "/embeddings": {"object": "list", "model": "m", "data": [_EMBEDDING]},
    "/images/generations": _IMAGE,
    "/images/edits": _IMAGE,
    "/audio/transcriptions": {"text": "hi"},
    "/moderations": {"id": "m1", "model": "m", "results": []},
    "/batches": {**_BATCH, "data": []},
    "/models": {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "o"}]},
    "/files": _FILE,
}


def answer(request: Any) -> dict[str, Any]:
    """Answer like an OpenAI server, streamed if the request asks for it; the list of files has two pages."""
    path, query = request.url.path, dict(request.url.params)
    if path.endswith(("/content", "/audio/speech")):
        return {"content": b"bytes"}
    if path.endswith("/files") and request.method == "GET":
        page = {
            "object": "list",
            "data": [{**_FILE, "id": f"f{len(query)}"}],
            "has_more": "after" not in query,
        }
        return {"json": page}
    body = next((body for end, body in _BODIES.items() if path.endswith(end)), {"id": "x"})
    is_json = request.content and "json" in request.headers.get("content-type", "")
    if is_json and json.loads(request.content).get("stream"):
        events = _EVENTS if path.endswith("/responses") else _CHUNKS
        lines = [f"event: {event.get('type', 'message')}\ndata: {json.dumps(event)}\n\n" for event in events]
        text = "".join(lines if path.endswith("/responses") else [line.split("\n", 1)[1] for line in lines])
        return {
            "content": f"{text}data: [DONE]\n\n".encode(),
            "headers": {"content-type": "text/event-stream"},
        }
    return {"json": body}


async def drain(stream: Any) -> None:
    """Read a stream, or all pages of a list, of a sync or async client to its end."""
    if hasattr(stream, "__aiter__"):
        async for _ in stream:
            pass
    else:
        for _ in stream:
            pass


async def within(manager: Any, use: Callable[[Any], Any]) -> Any:
    """Enter a sync or async context manager and return ``use`` of its value."""
    if hasattr(manager, "__aenter__"):
        async with manager as entered:
            return await value_of(use(entered))
    with manager as entered:
        return use(entered)


_MESSAGES: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
_INPUT: dict[str, Any] = {"model": "m", "input": "hi"}
_BATCH_REQUEST: dict[str, Any] = {
    "input_file_id": "f1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
_SOUND = ("a.wav", b"RIFF")
_PICTURE = ("a.png", b"png")


async def _chat_raw_stream(client: Any) -> None:
    raw = await value_of(client.chat.completions.with_raw_response.create(**_MESSAGES, stream=True))
    await drain(await value_of(raw.parse()))


async def _chat_streaming_response(client: Any) -> None:
    body = await within(client.chat.completions.with_streaming_response.create(**_MESSAGES), lambda r: r.read())
    assert json.loads(body) == _CHAT


async def _speech_streaming_response(client: Any) -> None:
    manager = client.audio.speech.with_streaming_response.create(model="m", voice="alloy", input="hi")
    assert await within(manager, lambda response: response.read()) == b"bytes"


async def _chat_raw(client: Any) -> None:
    raw = await value_of(client.chat.completions.with_raw_response.create(**_MESSAGES))
    assert (await value_of(raw.parse())).id == "c1"


async def _chat_parse(client: Any) -> None:
    parsed = await value_of(client.chat.completions.parse(**_MESSAGES, response_format=Reply))
    assert parsed.choices[0].message.parsed == Reply(word="hi")


async def _chat_stream_helper(client: Any) -> None:
    completion = await within(client.chat.completions.stream(**_MESSAGES), lambda s: s.get_final_completion())
    assert completion.choices[0].message.content == _MESSAGE["content"]


async def _responses_stream_helper(client: Any) -> None:
    final = await within(client.responses.stream(**_INPUT), lambda stream: stream.get_final_response())
    assert final.id == "r1"


async def _responses_parse(client: Any) -> None:
    assert (await value_of(client.responses.parse(**_INPUT, text_format=Reply))).output_parsed == Reply(word="hi")


async def _files_page_by_page(client: Any) -> None:
    pages = client.files.list(limit=1)
    ids = [f.id async for f in pages] if hasattr(pages, "__aiter__") else [f.id for f in pages]
    assert len(set(ids)) == 2


def _call(use: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def call(client: Any, **options: Any) -> Any:
        return await value_of(use(client, **options))

    return call


def _stream(use: Callable[[Any], Any]) -> Callable[..., Awaitable[Any]]:
    async def call(client: Any) -> Any:
        await drain(await value_of(use(client)))

    return call


CALLS: dict[str, Callable[..., Awaitable[Any]]] = {
    "chat": _call(lambda c, **options: c.chat.completions.create(**_MESSAGES, **options)),
    "chat, streamed": _stream(lambda c: c.chat.completions.create(**_MESSAGES, stream=True)),
    "chat, raw": _chat_raw,
    "chat, raw and streamed": _chat_raw_stream,
    "chat, streaming response": _chat_streaming_response,
    "chat, parse": _chat_parse,
    "chat, stream helper": _chat_stream_helper,
    "chat, beta": _call(lambda c: c.beta.chat.completions.parse(**_MESSAGES, response_format=Reply)),
    "completions": _call(lambda c: c.completions.create(model="m", prompt="hi")),
    "responses": _call(lambda c: c.responses.create(**_INPUT)),
    "responses, streamed": _stream(lambda c: c.responses.create(**_INPUT, stream=True)),
    "responses, parse": _responses_parse,
    "responses, stream helper": _responses_stream_helper,
    "responses, retrieve": _call(lambda c: c.responses.retrieve("r1")),
    "responses, delete": _call(lambda c: c.responses.delete("r1")),
    "embeddings": _call(lambda c: c.embeddings.create(**_INPUT)),
    "embeddings, raw": _call(lambda c: c.embeddings.with_raw_response.create(**_INPUT)),
    "images": _call(lambda c: c.images.generate(model="m", prompt="hi")),
    "images, edit": _call(lambda c: c.images.edit(model="m", image=_PICTURE, prompt="hi")),
    "audio, speech": _call(lambda c: c.audio.speech.create(model="m", voice="alloy", input="hi")),
    "audio, speech as a stream": _speech_streaming_response,
    "audio, transcription": _call(lambda c: c.audio.transcriptions.create(model="m", file=_SOUND)),
    "files, upload": _call(lambda c: c.files.create(file=("a.jsonl", b"{}"), purpose="batch")),
    "files, page by page": _files_page_by_page,
    "files, content": _call(lambda c: c.files.content("f1")),
    "files, delete": _call(lambda c: c.files.delete("f1")),
    "batches": _call(lambda c: c.batches.create(**_BATCH_REQUEST)),
    "batches, list": _stream(lambda c: c.batches.list()),
    "moderations": _call(lambda c: c.moderations.create(input="hi")),
    "models": _stream(lambda c: c.models.list()),
    "fine-tuning": _call(lambda c: c.fine_tuning.jobs.create(model="m", training_file="f1")),
    "vector stores": _call(lambda c: c.vector_stores.create(name="v")),
    "any path": _call(lambda c: c.post("/anything", body={}, cast_to=object)),
}
"""One call of each kind that works with each of the four clients."""
