"""A PydanticAI agent that calls a tool, through the gateway."""

import json
import os

import mlflow
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("pydantic-ai")
mlflow.pydantic_ai.autolog()

instrument(os.environ["GATEWAY_URL"])
provider = OpenAIProvider(base_url=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key="none")
traveller = Agent(OpenAIChatModel("chat", provider=provider))


@traveller.tool_plain
def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees and sunny in {city}"


with mlflow.start_span("agent", span_type="AGENT") as agent:
    traveller.run_sync("What is the weather in Lisbon?")

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
