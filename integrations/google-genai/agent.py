"""An agent that calls Gemini once, and then twice in parallel, through the gateway."""

import asyncio
import json
import os

import mlflow
from google import genai

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("google-genai")
mlflow.gemini.autolog()

instrument(os.environ["GATEWAY_URL"])
options = {"base_url": f"{os.environ['GATEWAY_URL']}/gemini", "api_version": "v1beta"}
client = genai.Client(api_key="none", http_options=options)


async def ask_at_once(*questions):
    models = client.aio.models
    await asyncio.gather(*(models.generate_content(model="gemini", contents=question) for question in questions))


with mlflow.start_span("agent", span_type="AGENT") as agent:
    client.models.generate_content(model="gemini", contents="Is it late in Lisbon?")
    asyncio.run(ask_at_once("Is it warm in Lisbon?", "Is it far to Lisbon?"))

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
