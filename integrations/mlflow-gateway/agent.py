"""An agent that makes three calls through the gateway, one of them streamed, and prints where to find its trace."""

import json
import os

import mlflow
from openai import OpenAI

from agent_gateway_client import wrap_openai

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("mlflow-gateway")

client = wrap_openai(OpenAI(base_url=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key="none"))

LATE = {"role": "user", "content": "Is it late in Lisbon?"}
PACKING = {"role": "user", "content": "Write a packing list for Lisbon."}

with mlflow.start_span("agent", span_type="AGENT") as agent:
    with mlflow.start_span("ask"):
        client.chat.completions.create(model="assistant", messages=[LATE])
    with mlflow.start_span("ask for a stream"):
        for _ in client.chat.completions.create(model="assistant-with-fallback", messages=[PACKING], stream=True):
            pass
    with mlflow.start_span("embed"):
        client.embeddings.create(model="search", input="the river Tejo")

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
