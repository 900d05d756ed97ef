"""The demo's model provider with the APIs that only tests call."""

from starlette.routing import BaseRoute, Route

from agent_gateway_client.demo.provider import Provider, below_prefixes
from tests.support.model_provider import cohere, openai_other


class EveryApi(Provider):
    """Also serves OpenAI's smaller APIs and Cohere's rerank."""

    def _routes(self) -> list[BaseRoute]:
        files = openai_other.Files()
        return [
            *super()._routes(),
            *below_prefixes("/completions", openai_other.completions),
            *below_prefixes("/moderations", openai_other.moderations),
            *below_prefixes("/images/generations", openai_other.images),
            *below_prefixes("/audio/transcriptions", openai_other.transcriptions),
            *below_prefixes("/audio/speech", openai_other.speech),
            Route("/v1/models", openai_other.models),
            Route("/v1/files", files.list_files),
            Route("/v1/files", files.upload, methods=["POST"]),
            Route("/v1/batches", files.list_batches),
            Route("/v1/batches", files.create_batch, methods=["POST"]),
            Route("/v2/rerank", cohere.rerank, methods=["POST"]),
        ]
