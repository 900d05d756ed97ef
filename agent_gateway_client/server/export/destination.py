"""The interface of a destination for mirrors, and the errors that it raises."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan

from agent_gateway_client.server.mirror import Convention


class TraceKey(NamedTuple):
    """A caller's trace.

    Attributes:
        trace_id: 128 bits.
        workspace: The MLflow workspace to look it up in; ``None`` without workspaces.
    """

    trace_id: int
    workspace: str | None = None


Place = Hashable
"""Where a trace is stored. Spans with the same place are sent together."""

ANYWHERE: Place = None
"""The place of all traces at a destination that accepts spans of any trace."""


class Destination:
    """Stores mirrors. All methods run in the exporter's thread.

    Attributes:
        convention: The destination's attribute names.
        max_batch: Maximum number of calls that are sent together.
    """

    convention: Convention
    max_batch = 200

    @property
    def max_located(self) -> int:
        """Maximum number of calls whose traces are looked up together, before they are sent in batches."""
        return self.max_batch

    @property
    def description(self) -> str:
        """The kind and address of the destination, without credentials; for operators."""
        return type(self).__name__

    def warm_up(self) -> None:
        """Do the slow work of the first mirror, such as imports."""

    def locate(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, Place]:
        """Return the place of each trace; unknown traces are left out.

        Raises:
            Unavailable: The destination does not answer now.
        """
        return dict.fromkeys(traces, ANYWHERE)

    def admits(self, user: str | None, place: Place) -> bool:
        """Return whether a user's calls may be written at a place now.

        Args:
            user: The caller's user name; ``None`` if it has none.
            place: Where the caller's trace is stored.

        Raises:
            Unavailable: The permission cannot be checked now.
        """
        return True

    def send(self, spans: Sequence[ReadableSpan], place: Place = ANYWHERE) -> int | None:
        """Store spans whose traces are all at the same place.

        Returns:
            The number of spans that the destination rejected although it accepted the request, if it reports that. They
            must not be sent again.

        Raises:
            Unavailable: The destination accepts nothing now.
            Refused: It will never accept these spans.
            Exception: It did not accept these spans, for an unknown reason.
        """
        raise NotImplementedError

    def sent(self, traces: Mapping[TraceKey, Place]) -> None:
        """Record that mirrors with tokens or cost were stored in these traces, at these places."""

    def maintain(self, *, everything: bool = False) -> float | None:
        """Do work that is due some time after mirrors were stored. Never raises.

        Args:
            everything: Whether to do all of it now, because the process stops.

        Returns:
            Seconds until more work is due; ``None`` if there is none.
        """
        return None

    def find_in_other_workspaces(self, traces: Collection[TraceKey]) -> Mapping[TraceKey, str]:
        """Return the workspaces of traces that are stored in a different workspace than their key's."""
        return {}

    def after_fork(self) -> None:
        """Drop the parent process's state. Called first in a child process."""


def address_of(url: str) -> str:
    """Return scheme, host and port of a URL; the rest may contain credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class ExportError(Exception):
    """Base class of a destination's errors. The message contains no address, credential or response."""


class Unavailable(ExportError):
    """The destination cannot be reached, is overloaded, or rejects our credentials. The spans may be accepted later.

    Attributes:
        retry_after: The destination's ``Retry-After`` in seconds, if it sent one.
        one_place: Whether the error concerns only the place of these spans, so that others may be tried.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None, one_place: bool = False) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.one_place = one_place


class Refused(ExportError):
    """The destination refuses these spans and will refuse them again."""


class TraceGone(Refused):
    """The trace was deleted or archived."""


class Misconfigured(ExportError):
    """The configuration is invalid, so there is no destination and nothing will be sent."""
