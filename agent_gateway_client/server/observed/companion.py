"""The companion in one worker of a gateway: its first line in the log, and its status."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import logger
from agent_gateway_client._version import __version__
from agent_gateway_client.server.export import Exporter, Reason
from agent_gateway_client.server.export.destination import address_of
from agent_gateway_client.server.observed import metrics

WARM_UP_VARIABLE = "AGENT_GATEWAY_WARM_UP"
"""``1`` has each worker import at its start what its first call needs."""

_HOSTS_LOGGERS = ("uvicorn.error", "gunicorn.error", "hypercorn.error")
"""Where servers log that a worker has started; most programs give our own logger no handler for such a line."""

_harmless = Guard("The companion could not announce itself")


class Companion:
    """What an operator may know of the companion in this worker.

    Args:
        exporter: What sends the mirrors.
        may_join: The predicate of who may join a trace; ``None`` where all may.
        upstreams: The URLs of the gateways behind this one.
        warm_up: What the first call needs beside the mirrors' destination.
    """

    def __init__(
        self,
        exporter: Exporter,
        may_join: Callable[..., Any] | None = None,
        upstreams: Iterable[str] = (),
        warm_up: Iterable[Callable[[], object]] = (),
    ) -> None:
        self.exporter = exporter
        self.may_join = "all" if may_join is None else _name_of(may_join)
        self.upstreams = [address_of(url) for url in upstreams]
        self._warm_up = tuple(warm_up)
        self._started_in: int | None = None

    def start(self) -> None:
        """Log one line, and begin to count; warm up if the environment says so. Once per process, and never raises."""
        if self._started_in == os.getpid():
            return
        self._started_in = os.getpid()
        with _harmless:
            metrics.start(reason.value for reason in Reason)
            _hosts_logger().info(
                "agent-gateway-client %s: calls are mirrored to %s; may join a trace: %s; gateways behind this one: %s "
                "[%d]",
                __version__,
                self.exporter.destination.description,
                self.may_join,
                ", ".join(self.upstreams) or "none",
                os.getpid(),
            )
        if os.environ.get(WARM_UP_VARIABLE) == "1":
            self.exporter.warm_up(self.exporter.destination.warm_up, *self._warm_up)

    def status(self) -> Mapping[str, Any]:
        """Return what the companion does, in values of JSON. It is this worker's: each counts for itself."""
        exporter = self.exporter
        counts = exporter.counts()
        last = exporter.last_problem
        return {
            "version": __version__,
            "pid": os.getpid(),
            "destination": exporter.destination.description,
            "may_join": self.may_join,
            "upstreams": self.upstreams,
            "submitted": counts.submitted,
            "sent": counts.sent,
            "waiting": counts.waiting,
            "dropped": dict(counts.dropped),
            "rejected_spans": counts.rejected_spans,
            "problem": exporter.problem,
            "last_problem": last and {"problem": last[0], "time": _iso(last[1])},
        }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or type(function).__module__}:{name}"


def _hosts_logger() -> logging.Logger:
    """Return the logger whose lines the operator sees: ours if it has a handler, else the server's own."""
    for candidate in (logger, *map(logging.getLogger, _HOSTS_LOGGERS)):
        if candidate.isEnabledFor(logging.INFO) and candidate.hasHandlers():
            return candidate
    return logger
