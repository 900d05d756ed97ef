"""The exporter that all of a process's gateways share when they are given none."""

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
    """The destination that the environment asks for. Making it may import MLflow, which takes seconds.

    It is made in the exporter's thread, so no call waits for it.
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
        """See :class:`~agent_gateway_client.server.export.destination.Destination`. Makes nothing."""
        return "not opened yet" if self._made is None else self._made.description

    def warm_up(self) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        self.make().warm_up()

    def make(self) -> Destination:
        """Return the destination, made at the first use.

        Raises:
            Misconfigured: It cannot be made.
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
        """Return the destination, made now if it was not yet.

        Raises:
            AgentGatewayError: A variable has a value that cannot work, or what it needs is not installed.
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

    def tend(self, *, everything: bool = False) -> float | None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return None if self._made is None else self._made.tend(everything=everything)

    def elsewhere(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, str]:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        return self.make().elsewhere(traces)

    def after_fork(self) -> None:
        """See :class:`~agent_gateway_client.server.export.destination.Destination`."""
        self._making = threading.Lock()
        if self._made is not None:
            self._made.after_fork()
        elif self._is_being_made and _an_import_was_cut_off():
            self._problem = "forked while MLflow was being imported"
            warn_once(
                "shared.fork",
                "This process was forked while its parent imported MLflow, so it cannot import MLflow itself; its "
                "gateway calls are not mirrored. Call agent_gateway_client.server.shared.shared_exporter() before "
                "processes are forked.",
            )
        self._is_being_made = False


def shared_exporter() -> Exporter:
    """Return the process's exporter. The first use makes it, as the environment says, and may import MLflow for it.

    Raises:
        AgentGatewayError: A variable has a value that cannot work, or what it needs is not installed.
    """
    check_environment()
    exporter = _shared()
    if isinstance(exporter.destination, _MadeWhenNeeded):
        exporter.destination.make_now()
    return exporter


def submit_to_shared(call: GatewayCall) -> None:
    """Hand a call that has ended to the process's exporter. Returns at once and never raises."""
    try:
        (_exporter or _shared()).submit(call)
    except Exception as error:
        warn_once("shared.exporter", "Gateway calls are not mirrored: %s: %s", type(error).__name__, error)


def flush(timeout: float = STOP_SECONDS) -> bool:
    """Send the mirrors that wait, before a process is frozen or killed.

    A process that is frozen between requests, as on AWS Lambda, calls this at the end of each request.

    Args:
        timeout: Seconds to wait at most.

    Returns:
        Whether nothing waits any more. Mirrors whose traces the store does not know yet wait on.
    """
    return _exporter is None or _exporter.flush(timeout)


def _shared() -> Exporter:
    global _exporter
    with _lock:
        if _exporter is None:
            _exporter = Exporter(_MadeWhenNeeded(), wait_seconds=wait_seconds_from_environment())
        return _exporter


def _an_import_was_cut_off() -> bool:
    """Tell whether a module is being imported by a thread that does not live any more, after a fork."""
    specs = (getattr(module, "__spec__", None) for module in list(sys.modules.values()))
    return any(getattr(spec, "_initializing", False) for spec in specs)


def _after_fork() -> None:
    global _lock
    # It may be held by a thread of the parent.
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
