"""A LlamaIndex agent that calls a tool, through the gateway."""

import asyncio
import json
import os

import mlflow
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai_like import OpenAILike

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("llamaindex")
mlflow.llama_index.autolog()

instrument(os.environ["GATEWAY_URL"])
model = OpenAILike(
    model="chat",
    api_base=f"{os.environ['GATEWAY_URL']}/openai/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
)


def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees and sunny in {city}"


async def main():
    await FunctionAgent(tools=[weather], llm=model).run("What is the weather in Lisbon?")


with mlflow.start_span("agent", span_type="AGENT") as agent:
    asyncio.run(main())

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
