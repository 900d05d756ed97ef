"""Adds the trace context to the requests that HTTP clients send to gateways.

For one client (:func:`wrap_httpx`), all clients of the process (:func:`instrument`), or by hand
(:func:`trace_headers`).
"""

from agent_gateway_client.http._clients import unwrap, wrap_httpx
from agent_gateway_client.http._headers import trace_headers
from agent_gateway_client.http._process_wide import instrument, uninstrument

__all__ = ["instrument", "trace_headers", "uninstrument", "unwrap", "wrap_httpx"]
