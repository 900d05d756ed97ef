"""An agent that calls a tool through LiteLLM and the gateway."""

import json
import os

# Otherwise LiteLLM downloads its price list on import.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm
import mlflow

from agent_gateway_client import instrument_litellm

mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("litellm")
mlflow.litellm.autolog()

instrument_litellm(os.environ["GATEWAY_URL"])

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


def ask(model, messages):
    url = f"{os.environ['GATEWAY_URL']}/openai/v1"
    answer = litellm.completion(f"openai/{model}", messages, tools=[WEATHER], api_base=url, api_key="none")
    return answer.choices[0].message


with mlflow.start_span("agent", span_type="AGENT") as agent:
    messages = [{"role": "user", "content": "What is the weather in Lisbon?"}]
    message = ask("chat", messages)
    messages.append(message)
    for call in message.tool_calls:
        result = weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    ask("fallback", messages)

mlflow.flush_trace_async_logging()
print(json.dumps({"trace_id": agent.trace_id}))
