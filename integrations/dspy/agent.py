"""A DSPy program that calls a model through the gateway."""

import json
import os

import dspy
import mlflow

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("dspy")
mlflow.dspy.autolog()

instrument(os.environ["GATEWAY_URL"])
gateway = f"{os.environ['GATEWAY_URL']}/openai/v1"
model = dspy.LM("openai/chat", api_base=gateway, api_key="none", cache=False, engine="litellm")

with mlflow.start_span("agent", span_type="AGENT") as agent:
    model("Is it late in Lisbon?")
    model("Is it warm in Lisbon?")

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
