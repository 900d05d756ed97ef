"""A Strands agent that calls a tool, through the gateway."""

import json
import os

import mlflow
from strands import Agent, tool
from strands.models.openai import OpenAIModel

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("strands")
mlflow.openai.autolog()

instrument(os.environ["GATEWAY_URL"])
client = {"base_url": f"{os.environ['GATEWAY_URL']}/openai/v1", "api_key": "none"}


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees and sunny in {city}"


with mlflow.start_span("agent", span_type="AGENT") as agent:
    Agent(OpenAIModel(client_args=client, model_id="chat"), tools=[weather], callback_handler=None)(
        "What is the weather in Lisbon?"
    )

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
