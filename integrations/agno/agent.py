"""An Agno agent that calls a tool, through the gateway."""

import json
import os

import mlflow
from agno.agent import Agent
from agno.models.openai.like import OpenAILike

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("agno")
mlflow.openai.autolog()

instrument(os.environ["GATEWAY_URL"])
model = OpenAILike("chat", base_url=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key="none")


def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees and sunny in {city}"


with mlflow.start_span("agent", span_type="AGENT") as agent:
    Agent(model=model, tools=[weather], telemetry=False).run("What is the weather in Lisbon?")

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
