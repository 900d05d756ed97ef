"""An ASGI application on a real server on loopback."""

import threading
import time
from types import TracebackType
from typing import Any

import uvicorn

from agent_gateway_client.demo._port import KEEP_ALIVE_S, listen
from tests.support.server import DEADLINE_S


class Served:
    """An application under uvicorn in a thread, as a context manager; yields the server's URL.

    Args:
        app: The application.
        ws: uvicorn's setting for websockets.
        port: TCP port; 0 takes a free one.
    """

    def __init__(self, app: Any, ws: str = "none", port: int = 0) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            ws=ws,  # type: ignore[arg-type]
            timeout_graceful_shutdown=5,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._server = uvicorn.Server(config)
        self._listener = listen(port)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> str:
        self._thread.start()
        deadline = time.monotonic() + DEADLINE_S
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return f"http://127.0.0.1:{self.port}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(DEADLINE_S)
        self._listener.close()
        assert not self._thread.is_alive()
