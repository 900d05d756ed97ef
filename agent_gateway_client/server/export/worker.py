"""A daemon thread that is started when there is work, and again when it has died."""

import threading
from collections.abc import Callable


class Worker:
    """One thread.

    Args:
        name: The thread's name.
        run: What it does.
        on_failure: Called where the thread cannot be started: the system has no thread left, or the interpreter ends.
    """

    def __init__(self, name: str, run: Callable[[], None], on_failure: Callable[[RuntimeError], None]) -> None:
        self._name = name
        self._run = run
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self.is_running = False

    def start(self) -> None:
        """Start the thread unless it runs."""
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
