"""A realtime session, which is a websocket: the trace context goes along with the request that opens it."""

import os

import mlflow
from openai import OpenAI

from agent_gateway_client import trace_headers

GATEWAY = os.environ["GATEWAY_URL"]
client = OpenAI(base_url=f"{GATEWAY}/openai/v1", api_key="none")

with mlflow.start_span("agent", span_type="AGENT"):
    headers = trace_headers(f"{GATEWAY}/openai/v1/realtime", [GATEWAY])
    with client.realtime.connect(model="realtime", extra_headers=headers) as connection:
        connection.session.update(session={"type": "realtime", "instructions": "Answer in one sentence."})
