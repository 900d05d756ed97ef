"""An agent of the OpenAI Agents SDK that calls a tool, through the gateway."""

import json
import os

import mlflow
from agents import Agent, Runner, function_tool, set_default_openai_client
from openai import AsyncOpenAI

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("openai-agents")
mlflow.openai.autolog()

instrument(os.environ["GATEWAY_URL"])
set_default_openai_client(AsyncOpenAI(base_url=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key="none"))


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees and sunny in {city}"


traveller = Agent(name="traveller", instructions="Answer in one sentence.", model="responses", tools=[weather])

with mlflow.start_span("agent", span_type="AGENT") as agent:
    Runner.run_sync(traveller, "What is the weather in Lisbon?")

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
