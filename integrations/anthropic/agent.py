"""An agent that calls Claude twice through the gateway."""

import json
import os

import mlflow
from anthropic import Anthropic

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("anthropic")
mlflow.anthropic.autolog()

instrument(os.environ["GATEWAY_URL"])
client = Anthropic(base_url=f"{os.environ['GATEWAY_URL']}/anthropic", api_key="none")


def ask(messages):
    return client.messages.create(model="claude", max_tokens=99, messages=messages).content[0].text


with mlflow.start_span("agent", span_type="AGENT") as agent:
    messages = [{"role": "user", "content": "Is it late in Lisbon?"}]
    messages.append({"role": "assistant", "content": ask(messages)})
    messages.append({"role": "user", "content": "And in Porto?"})
    ask(messages)

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
