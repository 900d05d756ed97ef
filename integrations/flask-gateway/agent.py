"""An agent that makes three calls through the gateway, one of them streamed, and prints where to find its trace."""

import json
import os

import mlflow
from openai import OpenAI

from agent_gateway_client import wrap_openai

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("flask-gateway")

client = wrap_openai(OpenAI(base_url=f"{os.environ['GATEWAY_URL']}/v1", api_key="none"))

with mlflow.start_span("agent", span_type="AGENT") as agent:
    with mlflow.start_span("ask"):
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "Is it late in Lisbon?"}])
    with mlflow.start_span("ask for a stream"):
        stream = client.chat.completions.create(
            model="fallback",
            messages=[{"role": "user", "content": "Write a packing list for Lisbon."}],
            stream=True,
            stream_options={"include_usage": True},
        )
        for _ in stream:
            pass
    with mlflow.start_span("embed"):
        client.embeddings.create(model="embeddings", input="the river Tejo")

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
