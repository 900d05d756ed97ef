"""An async graph of two experts that run in parallel, and an editor, which call their models through the gateway."""

import asyncio
import json
import operator
import os
from typing import Annotated, TypedDict

import mlflow
from langchain_core.runnables import RunnableConfig
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

from agent_gateway_client import GatewayCallbackHandler

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("langgraph")
mlflow.langchain.autolog()

model = ChatOpenAI(base_url=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key="unused", model="chat")


class Trip(TypedDict):
    city: str
    notes: Annotated[list[str], operator.add]


async def food(trip: Trip, config: RunnableConfig) -> dict[str, list[str]]:
    return {"notes": [(await model.ainvoke(f"What to eat in {trip['city']}?", config)).text]}


async def sights(trip: Trip, config: RunnableConfig) -> dict[str, list[str]]:
    return {"notes": [(await model.ainvoke(f"What to see in {trip['city']}?", config)).text]}


async def editor(trip: Trip, config: RunnableConfig) -> dict[str, list[str]]:
    return {"notes": [(await model.ainvoke(" ".join(trip["notes"]), config)).text]}


graph = StateGraph(Trip)
for node in (food, sights, editor):
    graph.add_node(node.__name__, node)
graph.add_edge(START, "food")
graph.add_edge(START, "sights")
graph.add_edge(["food", "sights"], "editor")
graph.add_edge("editor", END)


async def main() -> str:
    handler = GatewayCallbackHandler(os.environ["GATEWAY_URL"])
    with mlflow.start_span("trip", span_type="AGENT") as span:
        await graph.compile().ainvoke({"city": "Lisbon", "notes": []}, {"callbacks": [handler]})
    return str(span.trace_id)


trace_id = asyncio.run(main())
mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": trace_id}))
