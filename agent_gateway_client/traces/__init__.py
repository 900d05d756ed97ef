"""Joined traces for people: read from MLflow and shown as a tree, a waterfall, or a table."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_gateway_client.traces.calls import joined_calls

__all__ = ["joined_calls"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agent_gateway_client.traces import calls

    return getattr(calls, name)
