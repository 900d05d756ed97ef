"""Binds ports on loopback."""

from __future__ import annotations

import socket
import sys

from agent_gateway_client.errors import StartError

KEEP_ALIVE_S = 65
"""How long a server keeps an idle connection. uvicorn's default is 5 s, like httpx's pool: a request that is sent just
when the server closes the connection fails."""


def listen(port: int = 0) -> socket.socket:
    """Bind and listen on 127.0.0.1.

    Args:
        port: TCP port; 0 for a free one.

    Raises:
        StartError: The port is taken or may not be used.
    """
    bound = _bind(port)
    bound.listen(2048)
    return bound


class Reservation:
    """A port on 127.0.0.1, reserved for a server that another process is about to start.

    On Linux a second socket may bind to a bound port while neither listens, and the kernel does not assign
    the port to others. On other systems the port is released immediately, and the server fails to start if
    it is taken in the meantime.

    Args:
        port: TCP port; 0 for a free one.

    Raises:
        StartError: The port is taken or may not be used.
    """

    def __init__(self, port: int = 0) -> None:
        self._bound = _bind(port)
        self.port: int = self._bound.getsockname()[1]
        if sys.platform != "linux":
            self.release()

    def release(self) -> None:
        """Release the port. Call it once the server listens."""
        self._bound.close()


def _bind(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Allows reuse of a port that a server has just closed, and the reservation on Linux.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise StartError(
            f"Port {port} on 127.0.0.1 cannot be used ({error}); choose another, or none to take a free one."
        ) from error
    return bound
