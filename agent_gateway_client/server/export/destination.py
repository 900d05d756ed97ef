"""What the exporter asks of a place that mirrors are sent to, and how such a place says that it did not take them."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan

from agent_gateway_client.server.mirror import Convention


class TraceKey(NamedTuple):
    """A caller's trace.

    Attributes:
        trace_id: 128 bits.
        workspace: The MLflow workspace that it is looked for in; ``None`` where there are no workspaces.
    """

    trace_id: int
    workspace: str | None = None


Place = Hashable
"""Where a trace is stored. Spans that have the same place are sent together."""

ANYWHERE: Place = None
"""The place of every trace at a destination that takes the spans of any trace, known or not."""


class Destination:
    """A place that mirrors are sent to. All methods run in the exporter's thread.

    Attributes:
        convention: How the destination names facts.
        max_batch: Calls that are sent together at most.
    """

    convention: Convention
    max_batch = 200

    @property
    def description(self) -> str:
        """What the destination is, for an operator: a kind and an address, without credentials."""
        return type(self).__name__

    def warm_up(self) -> None:
        """Do now what the first mirror would wait for, such as imports."""

    def locate(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, Place]:
        """Return where each of the traces is stored; those that the destination does not know are left out.

        Raises:
            Unavailable: The destination cannot be asked now.
        """
        return dict.fromkeys(traces, ANYWHERE)

    def admits(self, user: str | None, place: Place) -> bool:
        """Tell whether calls of a user may be written at a place, as things are now.

        Args:
            user: The gateway's name of the caller; ``None`` where it has none.
            place: Where the caller's trace is stored.

        Raises:
            Unavailable: That cannot be told now.
        """
        return True

    def send(self, spans: Sequence[ReadableSpan], place: Place = ANYWHERE) -> int | None:
        """Store spans whose traces are all at the same place.

        Returns:
            How many of them the destination rejected although it took the request, where it says so. They must not be
            sent again.

        Raises:
            Unavailable: The destination cannot take anything now.
            Refused: It will not take these spans.
            Exception: It did not take these spans, for a reason of which nothing else is known.
        """
        raise NotImplementedError

    def sent(self, traces: Mapping[TraceKey, Place]) -> None:
        """Note that mirrors with tokens or cost were stored in these traces, at these places."""

    def tend(self, *, everything: bool = False) -> float | None:
        """Do what has to be done some time after mirrors were stored. Never raises.

        Args:
            everything: Whether to do now what would be due later, because the process stops.

        Returns:
            The seconds until there is more to do; ``None`` where there is nothing.
        """
        return None

    def elsewhere(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, str]:
        """Return the workspace of those traces that are stored in another one than they were looked for in."""
        return {}

    def after_fork(self) -> None:
        """Forget what belongs to the parent process. Called in a child before anything else."""


def address_of(url: str) -> str:
    """Return scheme, host and port of a URL. The rest of it may hold credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class ExportError(Exception):
    """The base of what a destination raises. Its message holds no address, credential or answer."""


class Unavailable(ExportError):
    """The destination cannot be reached, is overloaded, or does not let us in. The same spans may be taken later.

    Attributes:
        retry_after: The seconds after which the destination asks to be tried again, where it says so.
        one_place: Whether only the place that was written to is concerned, and others may be tried.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None, one_place: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.one_place = one_place


class Refused(ExportError):
    """The destination refuses these spans, and would refuse them again."""


class TraceGone(Refused):
    """The trace was deleted or archived."""


class Misconfigured(ExportError):
    """There is no destination, because the configuration cannot work. Nothing will ever be sent."""
