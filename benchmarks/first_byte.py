"""The time from a request to the first byte of a streamed answer: in process, and over a socket from a real uvicorn."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import uvicorn

from agent_gateway_client.server import GatewayTracingMiddleware
from agent_gateway_client.server.export import Exporter
from benchmarks.asgi import FLOOR, TRACED, Application, Nowhere, flushed, inline_spans, receive, scope, stream
from benchmarks.measure import interleave, percentile
from benchmarks.report import Report

CALLS = 50
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-length: 2\r\ntraceparent: %s\r\n\r\n{}"
    % TRACED[-1][1]
)
BARE, OURS = "without the middleware", "with the middleware"


def run(report: Report) -> None:
    in_process(report)
    over_a_socket(report)


def in_process(report: Report) -> None:
    """Until the server gets the first chunk; the middleware never delays one."""
    exporter = Exporter(Nowhere())
    ours = GatewayTracingMiddleware(stream, exporter)
    cases = {
        "bare": partial(_seconds, stream),
        FLOOR: partial(_seconds, inline_spans(stream)),
        "ours": flushed(exporter, partial(_seconds, ours)),
    }
    rows = report.added("time to the first byte", interleave(cases, seconds=3), [FLOOR, "ours"], FLOOR)
    report.mark("Time to the first byte, in terms of two inline spans", rows["ours"].ratio or 0, 0.25)


def over_a_socket(report: Report) -> None:
    """Until the client has the first byte of the body."""
    with ExitStack() as stack:
        cases = {}
        for name in (BARE, OURS):
            connection = stack.enter_context(_connected(stack.enter_context(_server(name))))
            cases[name] = partial(_seconds_over, connection)
        samples = interleave(cases, seconds=4)
    group = "time to the first byte, uvicorn"
    in_microseconds = {name: 1e6 * values for name, values in samples.items()}
    report.compared(group, in_microseconds, BARE, "µs")


def _seconds(app: Application) -> float:
    request = scope(TRACED)

    async def requests() -> float:
        seen: list[float] = []

        async def timed_send(message: Any) -> None:
            if message.get("more_body"):
                seen.append(time.perf_counter() - begin)

        for _ in range(CALLS):
            begin = time.perf_counter()
            await app(request, receive, timed_send)
        return percentile(seen, 50)

    return asyncio.run(requests())


def _seconds_over(connection: socket.socket) -> float:
    seen = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        connection.sendall(REQUEST)
        answer = b""
        while b"data: " not in answer:
            answer += connection.recv(65536)
        seen.append(time.perf_counter() - begin)
        while not answer.endswith(b"0\r\n\r\n"):
            answer += connection.recv(65536)
    return percentile(seen, 50)


@contextmanager
def _connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


@contextmanager
def _server(name: str) -> Iterator[int]:
    """Run a server of the streaming gateway in a separate process; yields its port."""
    command = [sys.executable, "-m", "benchmarks.first_byte", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


async def _application(scope: Any, receive: Any, send: Any) -> None:
    await stream({**scope, "chunks": 0}, receive, send)


APPLICATIONS: dict[str, Callable[[], Application]] = {
    BARE: lambda: _application,
    OURS: lambda: GatewayTracingMiddleware(_application, Exporter(Nowhere())),
}


def _serve(name: str) -> None:
    server = uvicorn.Server(uvicorn.Config(APPLICATIONS[name](), log_level="error", access_log=False, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        server.run(sockets=[listener])


if __name__ == "__main__":
    _serve(sys.argv[1])
