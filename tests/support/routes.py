"""The gateway's routes, the facts of their mirrors, and the tokens that an answer reports."""

import json
from typing import Any, NamedTuple

from agent_gateway_client.demo.gateway import ENDPOINTS
from tests.support.e2e import CHAT

MINI = "openai/gpt-4o-mini"
CLAUDE = f"anthropic/{ENDPOINTS['claude'].models[0]}"
GEMINI = f"{ENDPOINTS['gemini'].provider}/{ENDPOINTS['gemini'].models[0]}"


class Route(NamedTuple):
    """A route of the gateway, and the facts of its mirror.

    Attributes:
        path: The path below the gateway's.
        body: The request's.
        endpoint: The endpoint that it calls.
        request_type: MLflow's name for it in the gateway's own trace.
        model: ``provider/model`` of the answer.
        streamed: Whether the answer is a stream.
    """

    path: str
    body: dict[str, Any]
    endpoint: str
    request_type: str
    model: str = MINI
    streamed: bool = False

    def __str__(self) -> str:
        return f"{self.path}{' streamed' if self.streamed else ''} {self.model}"


def both(path: str, body: dict[str, Any], *rest: Any, **more: Any) -> list[Route]:
    """Return a route without streaming, and the same route streamed."""
    return [Route(path, body, *rest, **more), Route(path, {**body, "stream": True}, *rest, **more, streamed=True)]


CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "one two three"}]}]}
ROUTES = [
    *both("/openai/v1/chat/completions", {"model": "chat", **CHAT}, "chat", "passthrough/model/openai-chat"),
    *both(
        "/openai/v1/responses",
        {"model": "responses", "input": "one two three"},
        "responses",
        "passthrough/model/openai-responses",
    ),
    Route(
        "/openai/v1/embeddings",
        {"model": "embeddings", "input": ["one two", "three"]},
        "embeddings",
        "passthrough/model/openai-embeddings",
        "openai/text-embedding-3-small",
    ),
    *both("/mlflow/v1/chat/completions", {"model": "chat", **CHAT}, "chat", "unified/chat"),
    *both("/mlflow/v1/chat/completions", {"model": "claude", **CHAT}, "claude", "unified/chat", CLAUDE),
    *both("/chat/mlflow/invocations", CHAT, "chat", "unified/chat"),
    Route(
        "/embeddings/mlflow/invocations",
        {"input": ["one two", "three"]},
        "embeddings",
        "unified/embeddings",
        "openai/text-embedding-3-small",
    ),
    *both(
        "/anthropic/v1/messages",
        {"model": "claude", "max_tokens": 99, **CHAT},
        "claude",
        "passthrough/model/anthropic-messages",
        CLAUDE,
    ),
    Route(
        "/gemini/v1beta/models/gemini:generateContent",
        CONTENTS,
        "gemini",
        "passthrough/model/gemini-generateContent",
        GEMINI,
    ),
    Route(
        "/gemini/v1beta/models/gemini:streamGenerateContent",
        CONTENTS,
        "gemini",
        "passthrough/model/gemini-generateContent",
        GEMINI,
        streamed=True,
    ),
    *both("/proxy/chat/v1/chat/completions", {"model": "gpt-4o-mini", **CHAT}, "chat", "proxy/raw"),
]


def objects_in(content: bytes) -> list[dict[str, Any]]:
    """Return the JSON objects of an answer, or of a streamed answer's events."""
    if content.startswith(b"{"):
        return [json.loads(content)]
    data = [line.removeprefix(b"data: ") for line in content.splitlines() if line.startswith(b"data: ")]
    return [json.loads(line) for line in data if line != b"[DONE]"]


TOKEN_NAMES = {
    "input_tokens": ("prompt_tokens", "input_tokens", "promptTokenCount"),
    "output_tokens": ("completion_tokens", "output_tokens", "candidatesTokenCount"),
}
"""MLflow's names of token counts, and those of OpenAI, Anthropic and Gemini."""


def reported_usage(content: bytes) -> dict[str, int]:
    """Return the tokens that the provider reported in an answer of any API, by MLflow's names."""
    used: dict[str, int] = {}
    for found in objects_in(content):
        holder = found.get("response") or found.get("message") or found
        usage = holder.get("usage") or holder.get("usageMetadata") or {}
        for name, names in TOKEN_NAMES.items():
            for key in names:
                if usage.get(key) is not None:
                    used[name] = usage[key]
    return used
