"""Who may join a trace: a gateway of several tenants says which of its callers get mirrors.

A ``traceparent`` is a claim that anybody can make who knows a trace's id. Who may call a gateway may, by default, also
add mirrors to any trace of the store; a predicate on the request narrows that down.
"""

import asyncio
import os
import pkgutil
from collections.abc import Awaitable, Callable, MutableMapping
from inspect import isawaitable
from typing import Any

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.errors import ConfigurationError

MAY_JOIN_VARIABLE = "AGENT_GATEWAY_MAY_JOIN"
"""Names the predicate of a gateway that is configured by its environment, like ``our_tenants:may_join``."""

MayJoin = Callable[[MutableMapping[str, Any]], bool | Awaitable[bool]]
"""Tells by the ASGI scope of a request whether its caller may join the trace that it names; sync or async.

It is asked when the request has been served, so the scope holds what the application's authentication has noted. It
runs in the event loop: a sync one must not block. An async one that has not answered after ``MAX_SECONDS`` is given up.
"""


MAX_SECONDS = 5.0
"""How long an async predicate may take; who has got no answer by then may not join."""


async def joins(may_join: MayJoin, scope: MutableMapping[str, Any]) -> bool:
    """Call the predicate. If it raises, or has not answered after ``MAX_SECONDS``, the request may not join."""
    try:
        answer = may_join(scope)
        return bool(await _answer_in_time(answer) if isawaitable(answer) else answer)
    except TimeoutError:
        warn_once(
            "joining.time",
            "may_join() did not answer within %.0f s; such requests are served and not mirrored.",
            MAX_SECONDS,
        )
        return False
    except Exception as error:
        logger.debug("may_join() failed", exc_info=True)
        warn_once(
            "joining",
            "may_join() raised %s; such requests are served and not mirrored. Details are logged at level DEBUG.",
            type(error).__name__,
        )
        return False


def unanswered() -> int:
    """Return how many requests of this process were not mirrored because ``may_join`` did not answer in time."""
    return _unanswered


_unanswered = 0


async def _answer_in_time(answer: Awaitable[bool]) -> bool:
    global _unanswered
    try:
        task = asyncio.ensure_future(answer)
    except RuntimeError:
        # Another event loop than asyncio's, which has other ways to limit time.
        return await answer
    try:
        await asyncio.wait({task}, timeout=MAX_SECONDS)
        if task.done():
            return task.result()
        _unanswered += 1
        raise TimeoutError
    finally:
        # Not awaited: what ignores its cancellation must not keep the request, or the server, from ending.
        task.cancel()


def may_join_from_environment() -> MayJoin | None:
    """Return the predicate that ``AGENT_GATEWAY_MAY_JOIN`` names, or ``None`` where it is unset: all may join.

    Raises:
        ConfigurationError: There is no such function, or importing its module fails.
    """
    name = os.environ.get(MAY_JOIN_VARIABLE)
    if not name:
        return None
    hint = f"{MAY_JOIN_VARIABLE} is {name!r}; give a function as package.module:function"
    if ":" not in name:
        raise ConfigurationError(f"{hint}.")
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # the module is the operator's own code, and may fail in any way
        raise ConfigurationError(
            f"{hint} of an installed module, or of one in a directory on PYTHONPATH ({type(error).__name__}: {error})."
        ) from error
    if not callable(found):
        raise ConfigurationError(f"{hint}, and not a {type(found).__name__}.")
    return found  # type: ignore[no-any-return]
