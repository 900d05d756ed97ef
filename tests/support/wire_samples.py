"""Responses of the OpenAI, Anthropic and Gemini APIs as sent over the wire, and their facts.

Every text in them is a canary, and contains JSON that looks like the response around it.
"""

import json
from typing import Any, NamedTuple

from agent_gateway_client.server.call import TokenUsage
from agent_gateway_client.server.reading.responses import ResponseFacts

CANARY = "canary7f3a"
TEXT = f'{CANARY} {{"usage": {{"prompt_tokens": 666}}, "model": "{CANARY}", "error": "\\"{CANARY}"}}\n\ndata: [DONE]\\'


class Sample(NamedTuple):
    """A response.

    Attributes:
        path: The route that serves it.
        chunks: The chunks of its body.
        facts: The facts in it.
        streaming: Whether it is a stream of events.
    """

    path: str
    chunks: list[bytes]
    facts: ResponseFacts
    streaming: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


def document(path: str, value: Any, facts: ResponseFacts) -> Sample:
    return Sample(path, [json.dumps(value).encode()], facts)


def events(path: str, values: list[Any], facts: ResponseFacts, *, newline: str = "\n", named: bool = False) -> Sample:
    """Return a stream with one event per chunk."""
    chunks = []
    for value in values:
        data = value if isinstance(value, str) else json.dumps(value)
        name = f"event: {value['type']}{newline}" if named else ""
        chunks.append(f"{name}data: {data}{newline}{newline}".encode())
    return Sample(path, chunks, facts, streaming=True)


CHAT = "/v1/chat/completions"
MODEL = "gpt-4o-mini-2024-07-18"
CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 8},
}
CHAT_FACTS = ResponseFacts(MODEL, TokenUsage(100, 20, 120, 64, None, 8), "tool_calls")


def chat_chunk(delta: Any, finish_reason: str | None = None, **more: Any) -> Any:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {"id": "c-1", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice], "usage": None, **more}


CHAT_CHUNKS = [
    chat_chunk({"role": "assistant", "content": ""}),
    chat_chunk({"content": TEXT}),
    chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": TEXT}}]}),
    chat_chunk({}, "tool_calls"),
    chat_chunk({}, choices=[], usage=CHAT_USAGE),
    "[DONE]",
]

CLAUDE = "claude-3-5-haiku-20241022"
CLAUDE_USAGE = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 5,
    "cache_read_input_tokens": 30,
    "output_tokens": 20,
}
CLAUDE_FACTS = ResponseFacts(CLAUDE, TokenUsage(45, 20, 65, 30, 5), "end_turn")
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": CLAUDE,
    "content": [{"type": "text", "text": TEXT}, {"type": "tool_use", "input": {"usage": {"input_tokens": 666}}}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": CLAUDE_USAGE,
}
MESSAGE_EVENTS: list[Any] = [
    {
        "type": "message_start",
        "message": {**MESSAGE, "content": [], "stop_reason": None, "usage": {**CLAUDE_USAGE, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": TEXT},
        "usage": {"output_tokens": 20},
    },
    {"type": "message_stop"},
]

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "instructions": TEXT,
    "model": MODEL,
    "output": [{"type": "message", "status": "completed", "content": [{"type": "output_text", "text": TEXT}]}],
    "tools": [{"type": "function", "name": "f", "parameters": {"properties": {"usage": {"type": "object"}}}}],
    "usage": {
        "input_tokens": 36,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 87,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 123,
    },
    "user": None,
    "metadata": {"model": CANARY, "usage": TEXT},
}
RESPONSE_FACTS = ResponseFacts(MODEL, TokenUsage(36, 87, 123, 0, None, 0), "completed")
RESPONSE_EVENTS: list[Any] = [
    {"type": "response.created", "response": {**RESPONSE, "status": "in_progress", "output": [], "usage": None}},
    {"type": "response.output_text.delta", "delta": TEXT},
    {"type": "response.output_text.done", "text": TEXT},
    {"type": "response.completed", "response": RESPONSE},
]

GEMINI = "gemini-2.0-flash-001"
GEMINI_FACTS = ResponseFacts(GEMINI, TokenUsage(15, 9, 24, 4, None, 2), "MAX_TOKENS")
GENERATED = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": TEXT}]}, "finishReason": "MAX_TOKENS", "index": 0}],
    "usageMetadata": {
        "promptTokenCount": 12,
        "toolUsePromptTokenCount": 3,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 2,
        "totalTokenCount": 24,
        "cachedContentTokenCount": 4,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 12}],
    },
    "modelVersion": GEMINI,
    "responseId": CANARY,
}
GENERATED_CHUNKS: list[Any] = [
    {
        "candidates": [{"content": {"parts": [{"text": TEXT}]}, "index": 0}],
        "usageMetadata": {"promptTokenCount": 12, "totalTokenCount": 12},
        "modelVersion": GEMINI,
    },
    GENERATED,
]

SAMPLES = {
    "chat": document(
        CHAT,
        {
            "id": "c-1",
            "object": "chat.completion",
            "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "tool_calls"}],
            "usage": CHAT_USAGE,
            "system_fingerprint": None,
        },
        CHAT_FACTS,
    ),
    "chat, usage first": document(
        CHAT,
        {
            "usage": CHAT_USAGE,
            "model": MODEL,
            "choices": [{"finish_reason": "tool_calls", "message": {"content": TEXT}}],
        },
        CHAT_FACTS,
    ),
    "chat stream": events(CHAT, CHAT_CHUNKS, CHAT_FACTS),
    "chat stream, CRLF": events(CHAT, CHAT_CHUNKS, CHAT_FACTS, newline="\r\n"),
    "chat stream without usage": events(
        CHAT, [*CHAT_CHUNKS[:4], "[DONE]"], ResponseFacts(MODEL, finish_reason="tool_calls")
    ),
    "chat through MLflow to Anthropic": document(
        CHAT,
        {
            "model": CLAUDE,
            "choices": [{"message": {"content": TEXT}, "finish_reason": "length"}],
            "usage": {
                "prompt_tokens": 45,
                "completion_tokens": 20,
                "total_tokens": 65,
                "prompt_tokens_details": {"cached_tokens": 30},
                "cache_creation_input_tokens": 5,
            },
        },
        ResponseFacts(CLAUDE, TokenUsage(45, 20, 65, 30, 5), "length"),
    ),
    "completion": document(
        "/v1/completions",
        {
            "object": "text_completion",
            "model": "davinci-002",
            "choices": [{"text": TEXT, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        },
        ResponseFacts("davinci-002", TokenUsage(5, 7, 12), "length"),
    ),
    "embeddings": document(
        "/v1/embeddings",
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -1e-3]}],
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        ResponseFacts("text-embedding-3-small", TokenUsage(8, None, 8)),
    ),
    "message": document("/v1/messages", MESSAGE, CLAUDE_FACTS),
    "message stream": events("/v1/messages", MESSAGE_EVENTS, CLAUDE_FACTS, named=True),
    "response": document("/v1/responses", RESPONSE, RESPONSE_FACTS),
    "response stream": events("/v1/responses", RESPONSE_EVENTS, RESPONSE_FACTS, named=True),
    "generateContent": document("/v1beta/models/gemini-2.0-flash:generateContent", GENERATED, GEMINI_FACTS),
    "streamGenerateContent": events(
        "/v1beta/models/gemini-2.0-flash:streamGenerateContent", GENERATED_CHUNKS, GEMINI_FACTS, newline="\r\n"
    ),
    "streamGenerateContent as an array": document(
        "/v1beta/models/gemini-2.0-flash:streamGenerateContent", GENERATED_CHUNKS, GEMINI_FACTS
    ),
}
