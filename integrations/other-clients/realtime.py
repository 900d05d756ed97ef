"""A realtime session over a websocket. The request that opens it carries the trace context."""

import os

import mlflow
from openai import OpenAI

from agent_gateway_client import trace_headers

GATEWAY = os.environ["GATEWAY_URL"]
# Older releases of the SDK use wss:// for every websocket unless its URL is given.
websocket_url = f"{GATEWAY.replace('http', 'ws', 1)}/openai/v1"
client = OpenAI(base_url=f"{GATEWAY}/openai/v1", websocket_base_url=websocket_url, api_key="none")

with mlflow.start_span("agent", span_type="AGENT"):
    headers = trace_headers(f"{GATEWAY}/openai/v1/realtime", [GATEWAY])
    with client.realtime.connect(model="realtime", extra_headers=headers) as connection:
        connection.session.update(session={"type": "realtime", "instructions": "Answer in one sentence."})

mlflow.flush_trace_async_logging()
