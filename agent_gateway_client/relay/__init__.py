"""The relay: OTLP in from gateways that speak OpenTelemetry, payload-free mirrors out into the callers' traces.

The data goes one way: an HTTP body (:mod:`~agent_gateway_client.relay.body`) is read into spans
(:mod:`~agent_gateway_client.relay.protobuf`, :mod:`~agent_gateway_client.relay.otlp_json`), a table says which of them
are calls of a model and what they tell (:mod:`~agent_gateway_client.relay.dialects`), the pieces of a call are
collected (:mod:`~agent_gateway_client.relay.collect`) and put together
(:mod:`~agent_gateway_client.relay.assemble`), and the exporter of the companion writes the mirrors.
"""

from agent_gateway_client.relay.app import Relay
from agent_gateway_client.relay.limits import Limits

__all__ = ["Limits", "Relay"]
