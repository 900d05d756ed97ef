"""The process's shared exporter, for gateways that do not bring their own."""

import os
import sys
import threading
from collections.abc import Collection, Mapping, Sequence

from opentelemetry.sdk.trace import ReadableSpan

from agent_gateway_client._log import warn_once
from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.export.destination import ANYWHERE, Destination, Misconfigured, Place, TraceKey
from agent_gateway_client.server.export.environment import (
    check_environment,
    destination_from_environment,
    mlflow_from_environment,
    wait_seconds_from_environment,
)
from agent_gateway_client.server.export.exporter import STOP_SECONDS, Exporter
from agent_gateway_client.server.mirror import Convention

_lock = threading.Lock()
_exporter: Exporter | None = None


class _MadeWhenNeeded(Destination):
    """The destination that the environment configures. Creating it may import MLflow, which takes seconds.

    It is created in the exporter's thread, so that no call waits for it.
    """

    def __init__(self) -> None:
        self._made: Destination | None = None
        self._problem: str | None = None
        self._is_being_made = False
        self._making = threading.Lock()

    @property
    def convention(self) -> Convention:  # type: ignore[override]
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self.make().convention

    @property
    def description(self) -> str:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`. Does not create it."""
        return "not opened yet" if self._made is None else self._made.description

    def warm_up(self) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        self.make().warm_up()

    def make(self) -> Destination:
        """Return the destination, created at the first use.

        Raises:
            Misconfigured: It cannot be created.
        """
        if self._made is not None:
            return self._made
        if self._problem is not None:
            raise Misconfigured(self._problem)
        try:
            return self.make_now()
        except Exception as error:
            self._problem = type(error).__name__
            warn_once("shared.exporter", "Gateway calls are not mirrored: %s: %s", type(error).__name__, error)
            raise Misconfigured(self._problem) from error

    def make_now(self) -> Destination:
        """Return the destination, and let errors through.

        Raises:
            AgentGatewayError: A variable has an invalid value, or a package is not installed.
        """
        with self._making:
            if self._made is None:
                self._is_being_made = True
                try:
                    self._made = destination_from_environment(mlflow_from_environment)
                finally:
                    self._is_being_made = False
            return self._made

    def locate(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, Place]:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self.make().locate(traces)

    def admits(self, user: str | None, place: Place) -> bool:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self.make().admits(user, place)

    def send(self, spans: Sequence[ReadableSpan], place: Place = ANYWHERE) -> int | None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self.make().send(spans, place)

    def sent(self, traces: Mapping[TraceKey, Place]) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        self.make().sent(traces)

    def maintain(self, *, everything: bool = False) -> float | None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return None if self._made is None else self._made.maintain(everything=everything)

    def find_in_other_workspaces(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, str]:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self.make().find_in_other_workspaces(traces)

    def after_fork(self) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        self._making = threading.Lock()
        if self._made is not None:
            self._made.after_fork()
        elif self._is_being_made and _an_import_was_cut_off():
            self._problem = "forked while MLflow was being imported"
            warn_once(
                "shared.fork",
                "This process was forked while its parent imported MLflow, so it cannot import MLflow; its gateway "
                "calls are not mirrored. Call agent_gateway_client.server.shared.shared_exporter() before forking.",
            )
        self._is_being_made = False


def shared_exporter() -> Exporter:
    """Return the process's exporter. The first call creates it from the environment, and may import MLflow.

    Raises:
        AgentGatewayError: A variable has an invalid value, or a package is not installed.
    """
    check_environment()
    exporter = _shared()
    if isinstance(exporter.destination, _MadeWhenNeeded):
        exporter.destination.make_now()
    return exporter


def submit_to_shared(call: GatewayCall) -> None:
    """Submit an ended call to the process's exporter. Returns immediately and never raises."""
    try:
        (_exporter or _shared()).submit(call)
    except Exception as error:
        warn_once("shared.exporter", "Gateway calls are not mirrored: %s: %s", type(error).__name__, error)


def flush(timeout: float = STOP_SECONDS) -> bool:
    """Send the queued mirrors, before a process is frozen or killed.

    A process that is frozen between requests, as on AWS Lambda, calls this at the end of each request.

    Args:
        timeout: Maximum time in seconds.

    Returns:
        Whether the queue is empty. Mirrors whose traces the store does not know yet stay queued.
    """
    return _exporter is None or _exporter.flush(timeout)


def _shared() -> Exporter:
    global _exporter
    with _lock:
        if _exporter is None:
            _exporter = Exporter(_MadeWhenNeeded(), wait_seconds=wait_seconds_from_environment())
        return _exporter


def _an_import_was_cut_off() -> bool:
    """Return whether, after a fork, an import was left unfinished by a thread of the parent."""
    specs = (getattr(module, "__spec__", None) for module in list(sys.modules.values()))
    return any(getattr(spec, "_initializing", False) for spec in specs)


def _after_fork() -> None:
    global _lock
    # A thread of the parent may hold it.
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
