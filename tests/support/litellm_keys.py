"""Keys of a LiteLLM Proxy without a database, for its ``custom_auth``. Most of them have reached a limit."""

from typing import Any

from fastapi import HTTPException, Request
from litellm.proxy._types import UserAPIKeyAuth

UNLIMITED = "sk-without-a-limit"
RATE_LIMITED = "sk-no-request-a-minute"
TOKEN_LIMITED = "sk-one-token-a-minute"
OVER_BUDGET = "sk-without-money"
EXPIRED = "sk-of-last-year"

_LIMITS: dict[str, dict[str, Any]] = {
    UNLIMITED: {},
    RATE_LIMITED: {"rpm_limit": 0},
    TOKEN_LIMITED: {"tpm_limit": 1},
    OVER_BUDGET: {"budget_limits": [{"budget_duration": "1d", "max_budget": 0.0}]},
    EXPIRED: {"expires": "2025-01-01T00:00:00Z"},
}


async def check(request: Request, api_key: str) -> UserAPIKeyAuth:
    """Return the owner of a key.

    Raises:
        HTTPException: The key is not known.
    """
    if api_key not in _LIMITS:
        raise HTTPException(401, "There is no such key.")
    return UserAPIKeyAuth(api_key=api_key, **_LIMITS[api_key])
