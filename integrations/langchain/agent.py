"""A chain, a batch and an agent with a tool, which call their models through the gateway."""

import json
import os

import mlflow
from langchain.agents import create_agent
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from agent_gateway_client import GatewayCallbackHandler

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("langchain")
mlflow.langchain.autolog()

config = {"callbacks": [GatewayCallbackHandler(os.environ["GATEWAY_URL"])]}


def model(endpoint: str) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key="unused", model=endpoint, stream_usage=True
    )


@tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"18 degrees and sunny in {city}"


with mlflow.start_span("trip", span_type="AGENT") as trip:
    chain = ChatPromptTemplate.from_template("Name a city in {country}") | model("chat") | StrOutputParser()
    chain.batch([{"country": "Portugal"}, {"country": "Spain"}], config)
    for _ in model("fallback").stream("Write a packing list for Lisbon.", config):
        pass
    create_agent(model("chat"), [weather]).invoke({"messages": [("user", "What is the weather in Lisbon?")]}, config)

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": trip.trace_id}))
