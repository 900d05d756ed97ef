"""Zero-code instrumentation, configured by the environment.

``agent-gateway run`` and ``opentelemetry-instrument`` start it before the program's first line.
"""

from agent_gateway_client.auto._start import RECORD_VARIABLE, AgentGatewayInstrumentor, start

__all__ = ["RECORD_VARIABLE", "AgentGatewayInstrumentor", "start"]
