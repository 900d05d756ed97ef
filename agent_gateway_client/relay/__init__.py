"""The relay: OTLP in from gateways that speak OpenTelemetry, payload-free mirrors out into the callers' traces.

Data flows one way. An HTTP body (:mod:`~agent_gateway_client.relay.body`) is decoded into spans
(:mod:`~agent_gateway_client.relay.protobuf`, :mod:`~agent_gateway_client.relay.otlp_json`). Tables of attribute names
decide which spans are model calls and what they report (:mod:`~agent_gateway_client.relay.dialects`). The spans of a
call are collected (:mod:`~agent_gateway_client.relay.collect`) and assembled
(:mod:`~agent_gateway_client.relay.assemble`), and the companion's exporter writes the mirrors.
"""

from agent_gateway_client.relay.app import Relay
from agent_gateway_client.relay.limits import Limits

__all__ = ["Limits", "Relay"]
