"""An agent that calls a tool and streams its answer, through the gateway."""

import json
import os

import mlflow
from openai import OpenAI

from agent_gateway_client import wrap_openai

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("openai")
mlflow.openai.autolog()

client = wrap_openai(OpenAI(base_url=f"{os.environ['GATEWAY_URL']}/openai/v1", api_key="none"))

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@mlflow.trace(span_type="TOOL")
def weather(city):
    return f"18 degrees and sunny in {city}"


with mlflow.start_span("agent", span_type="AGENT") as agent:
    messages = [{"role": "user", "content": "What is the weather in Lisbon?"}]
    message = client.chat.completions.create(model="chat", messages=messages, tools=[WEATHER]).choices[0].message
    messages.append(message)
    for call in message.tool_calls:
        result = weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    for _ in client.chat.completions.create(model="fallback", messages=messages, tools=[WEATHER], stream=True):
        pass

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
