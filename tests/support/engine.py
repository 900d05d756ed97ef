"""Stands in for vLLM: OpenAI's chat API, and the span of a request that vLLM sends.

Written after vLLM 0.32: ``do_tracing`` in ``vllm/v1/engine/output_processor.py`` and ``vllm/tracing/otel.py``. It takes
``traceparent`` from the request's headers, and sends ``llm_request`` when the last token is there, before the last byte
of the response is. Its answers are the local model provider's.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

QUEUE_S, PREFILL_S, DECODE_S = 1.2, 0.3, 0.5
DELAY_MS = 100


class Engine:
    """The model server, as an ASGI application.

    Args:
        provider_url: The provider of its answers.
        traces_url: The destination of its spans.
        model: Its model, as in ``OTEL_RESOURCE_ATTRIBUTES``.
    """

    def __init__(self, provider_url: str, traces_url: str, model: str) -> None:
        self.app = Starlette(
            routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])], lifespan=self._lifespan
        )
        self._client = httpx.AsyncClient(base_url=provider_url, timeout=60, trust_env=False)
        resource = Resource.create(
            {"vllm.instrumenting_module_name": "vllm.llm_engine", "gen_ai.response.model": model}
        )
        self._tracing = TracerProvider(resource=resource)
        self._tracing.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(traces_url), schedule_delay_millis=DELAY_MS)
        )
        self._tracer = self._tracing.get_tracer("vllm.llm_engine")

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self._tracing.shutdown)
        await self._client.aclose()

    async def _chat(self, request: Request) -> Response:
        arrival = time.time()
        await asyncio.sleep(QUEUE_S + PREFILL_S)
        answer = await self._client.post(request.url.path, content=await request.body())
        if not answer.is_success:
            return Response(answer.content, answer.status_code, media_type="application/json")

        async def pieces() -> AsyncIterator[bytes]:
            half = len(answer.content) // 2
            yield answer.content[:half]
            await asyncio.sleep(DECODE_S)
            self._send_span(request, arrival)
            yield answer.content[half:]

        return StreamingResponse(pieces(), media_type=answer.headers["content-type"])

    def _send_span(self, request: Request, arrival: float) -> None:
        attributes: dict[str, Any] = {
            "gen_ai.latency.time_to_first_token": QUEUE_S + PREFILL_S,
            "gen_ai.latency.e2e": time.time() - arrival,
            "gen_ai.latency.time_in_queue": QUEUE_S,
            "gen_ai.usage.prompt_tokens": 3,
            "gen_ai.usage.completion_tokens": 5,
            "gen_ai.latency.time_in_model_prefill": PREFILL_S,
            "gen_ai.latency.time_in_model_decode": DECODE_S,
            "gen_ai.latency.time_in_model_inference": PREFILL_S + DECODE_S,
            "gen_ai.request.id": "chatcmpl-1",
            "gen_ai.request.n": 1,
        }
        self._tracer.start_span(
            "llm_request",
            context=TraceContextTextMapPropagator().extract(dict(request.headers)),
            kind=SpanKind.SERVER,
            start_time=int(arrival * 1e9),
            attributes=attributes,
        ).end()
