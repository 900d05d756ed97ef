"""Which requests may join the trace of their ``traceparent``.

A ``traceparent`` is not a proof: a caller only has to know a trace's id. By default every caller of a gateway can add
mirrors to every trace of the store; a gateway with several tenants restricts that with a predicate on the request.
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
"""The predicate of a gateway that is configured by its environment, like ``our_tenants:may_join``."""

MayJoin = Callable[[MutableMapping[str, Any]], bool | Awaitable[bool]]
"""A predicate that gets a request's ASGI scope and returns whether the request may join its trace; sync or async.

It is called after the request was served, so the scope has the results of the application's authentication. It runs in
the event loop: a sync predicate must not block, and an async one is cancelled after ``MAX_SECONDS``.
"""


MAX_SECONDS = 5.0
"""How long an async predicate may take. After that the request may not join."""


async def authorize(may_join: MayJoin, scope: MutableMapping[str, Any]) -> bool:
    """Call the predicate. If it raises, or has not answered after ``MAX_SECONDS``, the request may not join."""
    try:
        answer = may_join(scope)
        return bool(await _with_timeout(answer) if isawaitable(answer) else answer)
    except TimeoutError:
        warn_once(
            "authorization.time",
            "may_join() did not answer within %.0f s; such requests are served and not mirrored.",
            MAX_SECONDS,
        )
        return False
    except Exception as error:
        logger.debug("may_join() failed", exc_info=True)
        warn_once(
            "authorization",
            "may_join() raised %s; such requests are served and not mirrored. Details are logged at level DEBUG.",
            type(error).__name__,
        )
        return False


def timeouts() -> int:
    """Return how many requests of this process were not mirrored because ``may_join`` did not answer in time."""
    return _timeouts


_timeouts = 0


async def _with_timeout(answer: Awaitable[bool]) -> bool:
    global _timeouts
    try:
        task = asyncio.ensure_future(answer)
    except RuntimeError:
        # Not asyncio's event loop; other loops have other ways to limit time.
        return await answer
    try:
        await asyncio.wait({task}, timeout=MAX_SECONDS)
        if task.done():
            return task.result()
        _timeouts += 1
        raise TimeoutError
    finally:
        # Not awaited: a task that ignores its cancellation must not block the request or the server's stop.
        task.cancel()


def may_join_from_environment() -> MayJoin | None:
    """Return the predicate in ``AGENT_GATEWAY_MAY_JOIN``; ``None``, so that all may join, if it is unset.

    Raises:
        ConfigurationError: The function does not exist, or importing its module fails.
    """
    name = os.environ.get(MAY_JOIN_VARIABLE)
    if not name:
        return None
    hint = f"{MAY_JOIN_VARIABLE} is {name!r}; give a function as package.module:function"
    if ":" not in name:
        raise ConfigurationError(f"{hint}.")
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # the module is the operator's code and can raise anything
        raise ConfigurationError(
            f"{hint} of an installed module, or of one on PYTHONPATH ({type(error).__name__}: {error})."
        ) from error
    if not callable(found):
        raise ConfigurationError(f"{hint}, not a {type(found).__name__}.")
    return found  # type: ignore[no-any-return]
