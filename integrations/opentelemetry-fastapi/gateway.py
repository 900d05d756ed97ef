"""A gateway that knows OpenTelemetry and nothing of agent-gateway-client."""

import os

import openai
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
OpenAIInstrumentor().instrument()

app = FastAPI()
models = openai.AsyncOpenAI(base_url=os.environ["PROVIDER_URL"], max_retries=0)


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    body = await request.json()
    answer = await models.chat.completions.create(**{**body, "model": "gpt-4o-mini"})
    return JSONResponse(answer.model_dump())
