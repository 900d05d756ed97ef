"""A predicate like that of an operator of a LiteLLM Proxy with several tenants."""

from typing import Any


async def may_join(scope: dict[str, Any]) -> bool:
    """Reject a tenant with another's name and, if LiteLLM always authenticates its callers, a caller without a key."""
    if scope["path"] == "/v1/chat/completions" and not scope["user"].api_key:
        return False
    return dict(scope["headers"]).get(b"x-tenant") != b"theirs"
