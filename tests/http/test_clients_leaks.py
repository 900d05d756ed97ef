"""wrap_httpx() on real connections, kept alive, shared and proxied: only gateways get our headers."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow
import pytest

from agent_gateway_client import wrap_httpx
from tests.support.client import each_stack, isolated, named_by  # noqa: F401
from tests.support.http_server import HttpServer, via

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def running() -> Iterator[HttpServer]:
    with HttpServer() as server:
        yield server


@pytest.fixture
def server(running: HttpServer) -> HttpServer:
    running.requests.clear()
    return running


@each_stack
def test_connections_that_are_kept_open(stack: Any, server: HttpServer):
    """A client that calls a gateway and other hosts in turn over kept-alive connections does not mix them up."""
    client = wrap_httpx(stack.Client(trust_env=False, follow_redirects=True), [server.gateway])
    with mlflow.start_span("agent") as span, client:
        for _ in range(5):
            client.get(server.gateway)
            client.get(server.other)
            client.get(server.gateway + "2")
            client.get(via(server.gateway, server.other, server.gateway))
    (expected,) = {value for values in server.sent() for value in values}
    assert expected == named_by(span)
    assert [len(values) for values in server.sent()] == [1, 0, 0, 1, 0, 1] * 5


@each_stack
def test_two_clients_that_share_their_transport(stack: Any, server: HttpServer):
    """Wrapping one of them does not touch the other, whose requests go over the same connections."""
    transport = stack.HTTPTransport()
    ours, theirs = stack.Client(transport=transport), stack.Client(transport=transport)
    wrap_httpx(ours, [server.gateway])
    with mlflow.start_span("agent"), ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            ours.get(server.gateway)
            theirs.get(server.gateway)
        assert [len(values) for values in server.sent()] == [1, 0] * 5
        server.requests.clear()
        list(threads.map(theirs.get, [server.gateway] * 20))
    assert server.sent() == [[]] * 20
    transport.close()


class Proxy:
    """An HTTP proxy that keeps the headers of its requests, and answers them itself: 200, and 502 to CONNECT."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(DEADLINE_S)
                head = b""
                while b"\r\n\r\n" not in head and (more := connection.recv(65536)):
                    head += more
                self.heads.append(head.decode("latin-1"))
                status = "502 No" if head.startswith(b"CONNECT") else "200 OK"
                connection.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE_S)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.stop()


@each_stack
def test_through_a_proxy(stack: Any, proxy: Proxy):
    """Requests to a gateway pass the proxy with the header; no other request has it, nor a CONNECT to a gateway."""
    mounts = {"all://": stack.HTTPTransport(proxy=stack.Proxy(proxy.url))}
    gateways = ["http://gw.test/gateway", "https://gw.test/gateway"]
    with mlflow.start_span("agent") as span, wrap_httpx(stack.Client(mounts=mounts), gateways) as client:
        for url in ("http://gw.test/gateway/v1", "http://gw.test/other", "http://other.test/gateway"):
            assert client.get(url).status_code == 200
        with pytest.raises(stack.ProxyError):
            client.get("https://gw.test/gateway/v1")
    heads = [head.lower() for head in proxy.heads]
    assert [head.split(" ")[0] for head in heads] == ["get", "get", "get", "connect"]
    assert [head.count("traceparent") for head in heads] == [1, 0, 0, 0]
    assert f"traceparent: {named_by(span)}" in heads[0]
