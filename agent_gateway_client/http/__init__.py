"""HTTP clients: puts the trace context on their requests to gateways.

One client at a time (:func:`wrap_httpx`), all of the process (:func:`instrument`), or by hand (:func:`trace_headers`).
"""

from agent_gateway_client.http._clients import unwrap, wrap_httpx
from agent_gateway_client.http._headers import trace_headers
from agent_gateway_client.http._process_wide import instrument, uninstrument

__all__ = ["instrument", "trace_headers", "uninstrument", "unwrap", "wrap_httpx"]
