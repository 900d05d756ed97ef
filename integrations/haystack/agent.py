"""A Haystack agent that calls a tool, through the gateway."""

import json
import os

import mlflow
from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import tool
from haystack.utils import Secret

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("haystack")
mlflow.openai.autolog()

instrument(os.environ["GATEWAY_URL"])
generator = OpenAIChatGenerator(
    model="chat", api_base_url=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key=Secret.from_token("none")
)


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees and sunny in {city}"


with mlflow.start_span("agent", span_type="AGENT") as agent:
    traveller = Agent(chat_generator=generator, tools=[weather])
    traveller.run(messages=[ChatMessage.from_user("What is the weather in Lisbon?")])

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
