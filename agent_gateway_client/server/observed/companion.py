"""The companion in one worker of a gateway: its log line at start, and its status."""

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
"""With ``1``, each worker imports what its first call needs when it starts."""

_HOSTS_LOGGERS = ("uvicorn.error", "gunicorn.error", "hypercorn.error")
"""Servers log the start of a worker here. Most programs configure no handler for our own logger at level INFO."""

_guard = Guard("The companion could not announce itself")


class Companion:
    """The status of the companion in this worker, for operators.

    Args:
        exporter: The exporter.
        may_join: The predicate of who may join a trace; ``None`` if all may.
        upstreams: The URLs of the upstream gateways.
        warm_up: Slow work of the first call, besides that of the destination.
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
        """Log one line, start the metrics, and warm up if configured. Once per process; never raises."""
        if self._started_in == os.getpid():
            return
        self._started_in = os.getpid()
        with _guard:
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
        """Return the status of this worker as a JSON object."""
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
    """Return a logger whose lines the operator sees: ours if it has a handler, else the server's."""
    for candidate in (logger, *map(logging.getLogger, _HOSTS_LOGGERS)):
        if candidate.isEnabledFor(logging.INFO) and candidate.hasHandlers():
            return candidate
    return logger
