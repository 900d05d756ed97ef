"""An AutoGen agent that calls a tool, through the gateway."""

import asyncio
import json
import os

import mlflow
from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import ModelFamily
from autogen_ext.models.openai import OpenAIChatCompletionClient

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("autogen")
mlflow.autogen.autolog()

instrument(os.environ["GATEWAY_URL"])
model = OpenAIChatCompletionClient(
    model="chat",
    base_url=f"{os.environ['GATEWAY_URL']}/openai/v1",
    api_key="none",
    model_info={
        "family": ModelFamily.UNKNOWN,
        "function_calling": True,
        "json_output": False,
        "structured_output": False,
        "vision": False,
    },
)


def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees and sunny in {city}"


async def main():
    traveller = AssistantAgent("traveller", model, tools=[weather], reflect_on_tool_use=True)
    await traveller.run(task="What is the weather in Lisbon?")


with mlflow.start_span("agent", span_type="AGENT") as agent:
    asyncio.run(main())

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
