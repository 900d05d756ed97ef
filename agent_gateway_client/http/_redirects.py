"""What the hops of one call of a client share, in the stacks that make a new request for each hop of a redirect.

Those requests repeat the caller's headers. If they include a ``traceparent`` that names a span of this process, it is
removed from a hop that leaves the gateway.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from agent_gateway_client._patching import Switch
from agent_gateway_client.active_span import is_local_span
from agent_gateway_client.http._decide import Outcome
from agent_gateway_client.w3c import TRACEPARENT

hops: ContextVar[dict[str, Any] | None] = ContextVar("agent_gateway_client.hops", default=None)
"""Notes for the call that is being made; ``None`` outside of one. The calls that it makes itself are its hops."""


def must_come_off(outcome: Outcome, traceparent: str) -> bool:
    """Tell whether a hop must not carry a ``traceparent`` that the caller has set.

    It names a span of this process, an earlier hop of the same call went to a gateway with it, and this one does not.
    """
    shared = hops.get()
    if shared is None:
        return False
    if outcome == "kept" and is_local_span(traceparent):
        shared[TRACEPARENT] = traceparent
    return outcome == "not a gateway" and shared.get(TRACEPARENT) == traceparent


def shares_notes(original: Callable[..., Any], switch: Switch) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on or hops.get() is not None:
            return original(*args, **kwargs)
        token = hops.set({})
        try:
            return original(*args, **kwargs)
        finally:
            hops.reset(token)

    return call


def shares_notes_async(original: Callable[..., Any], switch: Switch) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        if not switch.is_on:
            return await original(*args, **kwargs)
        token = hops.set({})
        try:
            return await original(*args, **kwargs)
        finally:
            hops.reset(token)

    return call
