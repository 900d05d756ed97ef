"""Handles Ctrl-C and SIGTERM without raising an exception in running code."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, TypeVar

_T = TypeVar("_T")

_WAKE_S = 0.2


class Signals:
    """A context manager that handles SIGINT and SIGTERM; in the main thread only.

    An exception raised by a signal handler can be swallowed (in a weak reference's callback, which ``import`` uses)
    or leave a lock held forever. So the work runs in another thread, and the main thread waits for it or a signal.
    """

    def __init__(self) -> None:
        # SimpleQueue.put() is reentrant, so a signal handler may call it.
        self._events: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._events.put(number)

    def run(self, work: Callable[[], _T], clean_up: Callable[[], None]) -> _T:
        """Run a function in another thread.

        Args:
            work: The function.
            clean_up: Called if a signal arrives before the work is done. The process then exits with 128 plus the
                signal's number.

        Returns:
            The result of ``work``; its exception is raised here.
        """
        results: list[_T] = []
        errors: list[BaseException] = []

        def worker() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)
            finally:
                self._events.put(0)

        threading.Thread(target=worker, name="demo", daemon=True).start()
        if number := self.wait():
            clean_up()
            _end(128 + number)
        if errors:
            raise errors[0]
        return results[0]

    def wait(self) -> int:
        """Wait until a signal arrives or the work is done.

        Returns:
            The signal's number, or 0.
        """
        while True:
            # The system may deliver a signal to any thread, which does not wake the main thread, where Python's
            # handlers run. So the main thread polls.
            with contextlib.suppress(queue.Empty):
                return self._events.get(timeout=_WAKE_S)


def _end(status: int) -> NoReturn:
    # Not sys.exit(): the work thread is still running, and MLflow would export to a server that has stopped.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
