"""An agent of Microsoft's Agent Framework that calls a tool, through the gateway."""

import asyncio
import json
import os

import mlflow
from agent_framework.openai import OpenAIChatCompletionClient

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("agent-framework")
mlflow.openai.autolog()

instrument(os.environ["GATEWAY_URL"])
client = OpenAIChatCompletionClient(model="chat", base_url=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key="none")


def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees and sunny in {city}"


with mlflow.start_span("agent", span_type="AGENT") as agent:
    asyncio.run(client.as_agent(tools=[weather]).run("What is the weather in Lisbon?"))

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
