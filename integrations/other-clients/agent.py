"""An agent that calls a model through the gateway with requests, without instrumentation."""

import json
import os

import mlflow
import requests

from agent_gateway_client import trace_headers

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("other-clients")

GATEWAY = os.environ["GATEWAY_URL"]
url = f"{GATEWAY}/openai/v1/chat/completions"

with mlflow.start_span("agent", span_type="AGENT") as agent:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Is it late in Lisbon?"}]}
    requests.post(url, json=body, headers=trace_headers(url, [GATEWAY]), timeout=60).raise_for_status()

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
