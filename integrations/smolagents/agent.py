"""A smolagents agent that calls a tool, through the gateway."""

import json
import os

import mlflow
from smolagents import OpenAIModel, ToolCallingAgent, tool

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("smolagents")
mlflow.smolagents.autolog()

instrument(os.environ["GATEWAY_URL"])
model = OpenAIModel("chat", api_base=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key="none")


@tool
def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: The city.
    """
    return f"18 degrees and sunny in {city}"


with mlflow.start_span("agent", span_type="AGENT") as agent:
    ToolCallingAgent(tools=[weather], model=model, max_steps=2, verbosity_level=0).run("What is the weather in Lisbon?")

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
