"""Reads the facts of ended calls and releases their payloads.

A call comes with a function that reads the sources of facts that are complete only after the call: bodies, the
gateway's own spans. Until it runs, about half a second later, it may keep a prompt and an answer alive. If the reader
falls behind, the oldest calls lose their details, so that payloads are bounded in time and number.
"""

import time
from collections import deque
from collections.abc import Callable

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import warn_once
from agent_gateway_client.server.call import GatewayCall

MAX_UNREAD = 1_000
"""Maximum number of calls with unread details."""

UNREAD_SECONDS = 5.0
"""How long a call may keep its payload; after that, unread details are dropped."""

Finish = Callable[[GatewayCall], None]
"""Adds facts to an ended call; runs in a thread of the exporter."""


class _Ended:
    __slots__ = ("call", "finish", "since")

    def __init__(self, call: GatewayCall, finish: Finish | None, since: float) -> None:
        self.call = call
        self.finish = finish
        self.since = since


class Intake:
    """A lock-free queue of ended calls that bounds how long their payloads are kept.

    Args:
        max_calls: Maximum number of calls.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        # No lock: deque's operations are atomic, and a thread that waits for the GIL would keep a lock.
        self._ended: deque[_Ended] = deque()
        self._with_details: deque[_Ended] = deque()

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, call: GatewayCall, finish: Finish | None) -> int:
        """Add a call. Returns how many calls were dropped for it."""
        now = time.monotonic()
        ended = _Ended(call, finish, now)
        self._ended.append(ended)
        if finish is not None:
            self._with_details.append(ended)
            self._drop_overdue_details(now)
        if len(self._ended) <= self._max_calls:
            return 0
        given_up = 0
        while len(self._ended) > self._max_calls:
            try:
                self._ended.popleft().finish = None
            except IndexError:
                break
            given_up += 1
        return given_up

    def pop(self) -> tuple[GatewayCall, Finish | None] | None:
        """Remove and return the oldest call; ``None`` if the queue is empty."""
        try:
            ended = self._ended.popleft()
        except IndexError:
            return None
        finish, ended.finish = ended.finish, None
        return ended.call, finish

    def clear(self) -> int:
        """Drop all calls. Returns how many there were."""
        count = 0
        while self.pop() is not None:
            count += 1
        return count

    def _drop_overdue_details(self, now: float) -> None:
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
    """Add the facts that ``finish`` reads. Never raises."""
    if finish is not None:
        with _guard:
            finish(call)


_guard = Guard("Could not read the details of a gateway call; its mirror has only what HTTP shows")


def _warn_of_details_given_up() -> None:
    warn_once(
        "export.details",
        "Gateway calls end faster than their details can be read; some mirrors have only what HTTP shows. No prompt or "
        "answer is kept for longer than %.0f s.",
        UNREAD_SECONDS,
    )
