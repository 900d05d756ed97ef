"""Who may join a trace, as an operator of a LiteLLM Proxy with several tenants might say it."""

from typing import Any


async def may_join(scope: dict[str, Any]) -> bool:
    """Refuse a tenant who says that he is another one, and, where LiteLLM always knows its callers, who has no key."""
    if scope["path"] == "/v1/chat/completions" and not scope["user"].api_key:
        return False
    return dict(scope["headers"]).get(b"x-tenant") != b"theirs"
