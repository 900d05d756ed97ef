"""A server on loopback that keeps the headers of every request, for clients that accept no custom transport."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit


class HttpServer:
    """The server, as a context manager. It answers 200, or redirects to the URL in the query parameter ``to``.

    With the query parameter ``fail`` it first answers 503 that many times; below ``/fail/2`` twice.

    Below ``/gateway/away`` it redirects everything to the other host.

    One server is two hosts: a gateway at the address, and another host at the name ``localhost``. As a proxy it
    rejects everything.

    Attributes:
        requests: The URL of each request, from its Host header and its path, and its header lines.
        bodies: The body of each.
        failed: How often each failing path has been answered with 503.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, list[tuple[str, str]]]] = []
        self.bodies: list[bytes] = []
        self.failed: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def gateway(self) -> str:
        """URL of the gateway."""
        return f"http://127.0.0.1:{self._server.server_port}/gateway"

    @property
    def other(self) -> str:
        """URL of another host."""
        return f"http://localhost:{self._server.server_port}/gateway"

    def sent(self, name: str = "traceparent") -> list[list[str]]:
        """Return, for each request, the values of every header line with this name in any case."""
        return [[value for key, value in headers if key.lower() == name] for _, headers in self.requests]

    def __enter__(self) -> "HttpServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def via(*urls: str) -> str:
    """Return a URL that is redirected to each of the others in turn."""
    first, *rest = urls
    return f"{first}?{urlencode({'to': via(*rest)})}" if rest else first


_FAILS = re.compile(r"/fail/(\d+)/")


def _handler(server: HttpServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.bodies.append(self.rfile.read(int(self.headers.get("content-length") or 0)))
            server.requests.append((f"http://{self.headers['host']}{self.path}", self.headers.items()))
            query = parse_qs(urlsplit(self.path).query)
            to = query.get("to")
            fails = server.failed.get(self.path, 0) < int(query.get("fail", _FAILS.findall(self.path) or ["0"])[0])
            server.failed[self.path] = server.failed.get(self.path, 0) + fails
            if self.path.startswith("/gateway/away"):
                to = [f"{server.other}/elsewhere"]
            self.send_response(503 if fails else 307 if to else 200)
            if to:
                self.send_header("location", to[0])
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_GET

        def do_CONNECT(self) -> None:
            server.requests.append((f"https://{self.path}", self.headers.items()))
            self.send_error(403)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler
