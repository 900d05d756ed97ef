"""Ended calls on their way from the request to the exporter: their facts are read here, and their payload is let go.

A call comes with a function that reads what can only be read after it has ended: bodies, the gateway's own spans.
Until then it may hold on to a prompt and an answer. It is read within about half a second; where the reading falls
behind, the oldest calls give up their details, so what is held stays bounded in time and in number.
"""

import time
from collections import deque
from collections.abc import Callable

from agent_gateway_client._log import logger, warn_once
from agent_gateway_client.server.call import GatewayCall

MAX_UNREAD = 1_000
"""Calls whose details are still to be read."""

UNREAD_SECONDS = 5.0
"""How long a call may hold on to its payload; after that it gives up what was not read."""

Finish = Callable[[GatewayCall], None]
"""Adds to a call what can be read after it has ended; runs in a thread of the exporter."""


class _Ended:
    __slots__ = ("call", "finish", "since")

    def __init__(self, call: GatewayCall, finish: Finish | None, since: float) -> None:
        self.call = call
        self.finish = finish
        self.since = since


class Intake:
    """A queue that takes calls without a lock, and lets go of what they hold.

    Args:
        max_calls: Calls that may be in it.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        # No lock: deque's own operations need none, and a lock would be held by a thread that waits for the GIL.
        self._ended: deque[_Ended] = deque()
        self._with_details: deque[_Ended] = deque()

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, call: GatewayCall, finish: Finish | None) -> int:
        """Take a call. Returns how many calls were given up for it."""
        now = time.monotonic()
        ended = _Ended(call, finish, now)
        self._ended.append(ended)
        if finish is not None:
            self._with_details.append(ended)
            self._let_go(now)
        given_up = 0
        while len(self._ended) > self._max_calls:
            try:
                self._ended.popleft().finish = None
            except IndexError:
                break
            given_up += 1
        return given_up

    def pop(self) -> tuple[GatewayCall, Finish | None] | None:
        """Take the oldest call out; ``None`` where there is none."""
        try:
            ended = self._ended.popleft()
        except IndexError:
            return None
        finish, ended.finish = ended.finish, None
        return ended.call, finish

    def clear(self) -> int:
        """Give all up. Returns how many they were."""
        count = 0
        while self.pop() is not None:
            count += 1
        return count

    def _let_go(self, now: float) -> None:
        waiting = self._with_details
        try:
            while waiting[0].finish is None or len(waiting) > MAX_UNREAD or now - waiting[0].since > UNREAD_SECONDS:
                oldest = waiting.popleft()
                if oldest.finish is not None:
                    oldest.finish = None
                    _warn_of_details_given_up()
        except IndexError:
            pass


def read_facts(call: GatewayCall, finish: Finish | None) -> None:
    """Read what can be read of a call now that it has ended. Never raises."""
    if finish is None:
        return
    try:
        finish(call)
    except Exception as error:
        logger.debug("Could not read the details of a gateway call", exc_info=True)
        warn_once(
            "export.finish",
            "Could not read the details of a gateway call (%s); its mirror says only what HTTP tells. Details are "
            "logged at level DEBUG.",
            type(error).__name__,
        )


def _warn_of_details_given_up() -> None:
    warn_once(
        "export.details",
        "Gateway calls end faster than their details can be read; some mirrors say only what HTTP tells. No prompt or "
        "answer is held for longer than %.0f s.",
        UNREAD_SECONDS,
    )
