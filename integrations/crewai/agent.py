"""A CrewAI agent that calls a tool, through the gateway."""

import json
import os

os.environ["CREWAI_DISABLE_TELEMETRY"] = "true"

import mlflow
from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("crewai")
mlflow.openai.autolog()

instrument(os.environ["GATEWAY_URL"])
model = LLM("openai/chat", base_url=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key="none")


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees and sunny in {city}"


traveller = Agent(
    role="traveller", goal="answer questions", backstory="has been everywhere", llm=model, tools=[weather]
)
question = Task(description="What is the weather in Lisbon?", expected_output="one sentence", agent=traveller)

with mlflow.start_span("agent", span_type="AGENT") as agent:
    Crew(agents=[traveller], tasks=[question], tracing=False).kickoff()

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
