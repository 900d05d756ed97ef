"""Cohere's rerank, as the local model provider serves it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agent_gateway_client.demo._respond import begin, body_of
from agent_gateway_client.demo.behaviour import Behaviour, text_of


def error_body(status: int, message: str) -> dict[str, Any]:
    """Build Cohere's error object."""
    return {"message": message}


async def rerank(request: Request) -> Response:
    """``POST /v2/rerank``; a document's relevance is the share of the query's words in it."""
    body = await body_of(request)
    query = text_of(body.get("query"))
    if failed := await begin(Behaviour.of(str(body.get("model"))), query, error_body):
        return failed
    words = set(query.lower().split()) or {""}
    scores = [
        len(words & set(text_of(document).lower().split())) / len(words) for document in body.get("documents", [])
    ]
    best_first = sorted(range(len(scores)), key=lambda index: -scores[index])
    results = [{"index": index, "relevance_score": scores[index]} for index in best_first]
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    return JSONResponse({"id": "rerank-local", "results": results[: body.get("top_n")], "meta": meta})
