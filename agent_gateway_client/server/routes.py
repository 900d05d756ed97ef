"""The routes of providers' APIs, which gateways serve below any prefix."""

from collections.abc import Mapping
from typing import Any

from agent_gateway_client.server.call import Operation

_ROUTES: dict[str, Operation] = {
    "/chat/completions": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
    "/responses": "chat",
    "/responses/compact": "other",
    "/images/generations": "other",
    "/images/edits": "other",
    "/images/variations": "other",
    "/audio/speech": "other",
    "/audio/transcriptions": "other",
    "/audio/translations": "other",
    "/v1/moderations": "other",
    "/v1/rerank": "other",
    "/v2/rerank": "other",
    # With the version, because many applications that are not gateways have a route /messages.
    "/v1/messages": "chat",
    ":generateContent": "generate_content",
    ":streamGenerateContent": "generate_content",
    ":embedContent": "embeddings",
    ":batchEmbedContents": "embeddings",
    # Bedrock, Cohere, Ollama and Text Generation Inference. Their other routes have names that are too general.
    "/converse": "chat",
    "/converse-stream": "chat",
    "/invoke-with-response-stream": "chat",
    "/v2/chat": "chat",
    "/v2/embed": "embeddings",
    "/api/chat": "chat",
    "/api/generate": "text_completion",
    "/api/embed": "embeddings",
    "/generate_stream": "text_completion",
    # Claude on Vertex AI.
    ":rawPredict": "chat",
    ":streamRawPredict": "chat",
}
"""Path suffixes of model calls, and their operations. docs/providers.md has the table, and the routes that are left out
because they list, store or count and do not call a model.
"""

_SUFFIXES = tuple(_ROUTES)
_BEDROCK = ("converse", "converse-stream", "invoke", "invoke-with-response-stream")


def is_model_call(scope: Mapping[str, Any]) -> bool:
    """Return whether an ASGI request is a POST to a known route, below any prefix."""
    return bool(scope["method"] == "POST" and is_model_path(scope["path"]))


def is_model_path(path: str) -> bool:
    """Return whether a path ends with a known route."""
    return path.removesuffix("/").endswith(_SUFFIXES)


def route_of(path: str) -> tuple[str, Operation] | None:
    """Return the name of a path's route, like ``chat/completions``, and its operation."""
    path = path.removesuffix("/")
    for suffix, operation in _ROUTES.items():
        if path.endswith(suffix):
            return suffix.lstrip("/:"), operation
    return None


def model_in_path(path: str) -> str | None:
    """Return the model in a Gemini or Bedrock path, or the deployment in an Azure path."""
    model, colon, method = path.rpartition("/models/")[2].partition(":")
    if colon and method and "/" not in model + method:
        return model or None
    model, _, method = path.partition("/model/")[2].partition("/")
    if model and method in _BEDROCK:
        return model
    deployment, _, rest = path.partition("/deployments/")[2].partition("/")
    return (rest and deployment) or None
