"""A leak that is planted in a gateway in a process of its own: its mirrors say what a header of the request says.

``AGENT_GATEWAY_MAY_JOIN=tests.support.leaking:may_join`` plants it.
"""

from typing import Any

from agent_gateway_client.server import mirror

HEADER = b"user-agent"

_warned = ""
_call_facts = mirror._call_facts


def may_join(scope: dict[str, Any]) -> bool:
    """Let everybody join, and keep what is to be leaked."""
    global _warned
    _warned = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == HEADER), "")
    return True


def _leaking_facts(call: Any) -> Any:
    yield from _call_facts(call)
    yield "leaked", "leaked", mirror._name(_warned)


mirror._call_facts = _leaking_facts
