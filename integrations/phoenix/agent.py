"""An agent that is traced only with OpenTelemetry, calls a gateway twice, and prints where to find its trace."""

import os

from openai import OpenAI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from agent_gateway_client import wrap_openai

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("agent")

client = wrap_openai(OpenAI(base_url=f"{os.environ['GATEWAY_URL']}/v1", api_key="none"))

with tracer.start_as_current_span("agent") as agent:
    with tracer.start_as_current_span("ask"):
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "Is it late in Lisbon?"}])
    with tracer.start_as_current_span("ask for a stream"):
        stream = client.chat.completions.create(
            model="fallback",
            messages=[{"role": "user", "content": "Write a packing list for Lisbon."}],
            stream=True,
            stream_options={"include_usage": True},
        )
        for _ in stream:
            pass

provider.shutdown()
print(f"{agent.get_span_context().trace_id:032x}")
