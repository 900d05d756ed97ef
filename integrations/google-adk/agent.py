"""A Google ADK agent that calls a tool, through the gateway."""

import asyncio
import json
import os

import mlflow
from google.adk.agents import Agent
from google.adk.models import Gemini
from google.adk.runners import InMemoryRunner
from google.genai import types

from agent_gateway_client import instrument

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("google-adk")
mlflow.gemini.autolog()

instrument(os.environ["GATEWAY_URL"])
os.environ["GOOGLE_API_KEY"] = "none"
os.environ["GOOGLE_GEMINI_BASE_URL"] = f"{os.environ['GATEWAY_URL']}/gemini"


def weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees and sunny in {city}"


async def main():
    runner = InMemoryRunner(Agent(name="traveller", model=Gemini(model="gemini"), tools=[weather]), app_name="travel")
    session = await runner.session_service.create_session(app_name="travel", user_id="user")
    question = types.Content(role="user", parts=[types.Part(text="What is the weather in Lisbon?")])
    async for _ in runner.run_async(user_id="user", session_id=session.id, new_message=question):
        pass


with mlflow.start_span("agent", span_type="AGENT") as agent:
    asyncio.run(main())

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
