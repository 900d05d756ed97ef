"""State shared by the hops of one client call, for HTTP stacks that create a new request for each redirect hop.

Those requests repeat the caller's headers. If they include the ``traceparent`` of a span of this process, it is removed
from a hop that leaves the gateway.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from agent_gateway_client._patching import Switch
from agent_gateway_client.active_span import is_local_span
from agent_gateway_client.http._decide import Outcome
from agent_gateway_client.w3c import TRACEPARENT

hops: ContextVar[dict[str, Any] | None] = ContextVar("agent_gateway_client.hops", default=None)
"""The current call's state; ``None`` outside of a call. Nested calls are its hops."""


def must_remove(outcome: Outcome, traceparent: str) -> bool:
    """Return whether to remove a ``traceparent`` that the caller has set from a hop.

    True if it is that of a span of this process, an earlier hop of the same call carried it to a gateway, and this hop
    goes elsewhere.
    """
    shared = hops.get()
    if shared is None:
        return False
    if outcome == "kept" and is_local_span(traceparent):
        shared[TRACEPARENT] = traceparent
    return outcome == "not a gateway" and shared.get(TRACEPARENT) == traceparent


def shares_hops(original: Callable[..., Any], switch: Switch) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on or hops.get() is not None:
            return original(*args, **kwargs)
        token = hops.set({})
        try:
            return original(*args, **kwargs)
        finally:
            hops.reset(token)

    return call


def shares_hops_async(original: Callable[..., Any], switch: Switch) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(*args, **kwargs)
        token = hops.set({})
        try:
            return await original(*args, **kwargs)
        finally:
            hops.reset(token)

    return call
