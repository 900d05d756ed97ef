"""The routes of the OpenAI, Anthropic and Gemini APIs, which gateways serve below prefixes of their own."""

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
    # Many applications that are not gateways have messages, so Anthropic's route is known by its version too.
    "/v1/messages": "chat",
    ":generateContent": "generate_content",
    ":streamGenerateContent": "generate_content",
    ":embedContent": "embeddings",
    ":batchEmbedContents": "embeddings",
    # Bedrock, Cohere, Ollama and Text Generation Inference; what else they call their routes says too little.
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
"""The ends of the paths of calls, and what is asked of the model there. docs/providers.md has the table, also of those
that are left out: they list, store or count, and ask nothing of a model.
"""

_SUFFIXES = tuple(_ROUTES)
_BEDROCK = ("converse", "converse-stream", "invoke", "invoke-with-response-stream")


def is_model_call(scope: Mapping[str, Any]) -> bool:
    """Tell whether an ASGI request is a POST to one of the known routes, below any prefix."""
    return bool(scope["method"] == "POST" and scope["path"].removesuffix("/").endswith(_SUFFIXES))


def route_of(path: str) -> tuple[str, Operation] | None:
    """Return the name of a path's route, like ``chat/completions``, and what it does."""
    path = path.removesuffix("/")
    for suffix, operation in _ROUTES.items():
        if path.endswith(suffix):
            return suffix.lstrip("/:"), operation
    return None


def model_in_path(path: str) -> str | None:
    """Return the model that Gemini's and Bedrock's paths name, or the deployment that Azure's do."""
    model, colon, method = path.rpartition("/models/")[2].partition(":")
    if colon and method and "/" not in model + method:
        return model or None
    model, _, method = path.partition("/model/")[2].partition("/")
    if model and method in _BEDROCK:
        return model
    deployment, _, rest = path.partition("/deployments/")[2].partition("/")
    return (rest and deployment) or None
