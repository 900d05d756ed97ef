"""A daemon thread that is started on demand, and restarted if it has died."""

import threading
from collections.abc import Callable


class Worker:
    """One thread.

    Args:
        name: The thread's name.
        run: The thread's function.
        on_failure: Called if the thread cannot be started: the system has no threads left, or the interpreter exits.
    """

    def __init__(self, name: str, run: Callable[[], None], on_failure: Callable[[RuntimeError], None]) -> None:
        self._name = name
        self._run = run
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self.is_running = False

    def start(self) -> None:
        """Start the thread unless it is running."""
        with self._lock:
            if self.is_running:
                return
            self.is_running = True
            try:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            except RuntimeError as error:
                self.is_running = False
                self._on_failure(error)

    def _work(self) -> None:
        try:
            self._run()
        finally:
            self.is_running = False
