"""An OTLP/HTTP endpoint on loopback that keeps every byte it receives, and that can fail in various ways."""

import contextlib
import datetime
import gzip
import ipaddress
import json
import re
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.server import DEADLINE_S

Trouble = int | Literal["garbage", "hang up", "silence"]
"""The result of a request: an HTTP status, an answer that is not HTTP, a closed connection, or no answer."""


class Received(NamedTuple):
    """A request that was accepted.

    Attributes:
        head: The request line and the header lines.
        body: The body as received, compressed or not.
    """

    path: str
    headers: dict[str, str]
    head: bytes
    body: bytes

    @property
    def payload(self) -> bytes:
        """The decompressed body."""
        return gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body

    @property
    def spans(self) -> list[Span]:
        resources = ExportTraceServiceRequest.FromString(self.payload).resource_spans
        return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]


class Receiver:
    """The endpoint, as a context manager.

    Args:
        certificate: A certificate and its key, for https.

    Attributes:
        requests: The accepted requests.
        troubles: The failures of the next requests, in order; later requests are accepted.
        tries: The number of requests so far, accepted or not.
        answer: The body of the answer to spans.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self._certificate = certificate
        self.requests: list[Received] = []
        self.troubles: list[Trouble] = []
        self.tries = 0
        self.answer = b""
        self._changed = threading.Condition()
        self._gone = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        self._server: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http{'s' if self._certificate else ''}://127.0.0.1:{self._port}"

    @property
    def spans(self) -> list[Span]:
        return [span for request in self.requests for span in request.spans]

    def start(self) -> None:
        """Start listening; after ``stop()``, on the same port again."""
        self._server = _Server(("127.0.0.1", self._port), _handler(self))
        if self._certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(self._certificate)
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        """Stop like a server that has crashed: connections break, new ones are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None
            for connection in list(self._connections):
                _break_off(connection)

    def wait_for_tries(self, count: int) -> None:
        """Wait until this many requests have arrived, accepted or not."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.tries >= count, DEADLINE_S)

    def __enter__(self) -> "Receiver":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gone.set()
        self.stop()

    def _tried(self) -> Trouble:
        with self._changed:
            self.tries += 1
            self._changed.notify_all()
            return self.troubles.pop(0) if self.troubles else 200


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


def _break_off(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            receiver._connections.add(self.connection)

        def finish(self) -> None:
            receiver._connections.discard(self.connection)
            super().finish()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path.startswith("/api/"):
                self._answer(200, _mlflow_answer(self.path, body))
                return
            trouble = receiver._tried()
            if trouble == "silence":
                receiver._gone.wait(DEADLINE_S)
            if trouble == "garbage":
                self.wfile.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            if isinstance(trouble, str):
                self.close_connection = True
                return
            if trouble == 200:
                headers = {name.lower(): value for name, value in self.headers.items()}
                head = f"{self.requestline}\r\n{self.headers}".encode("latin-1")
                receiver.requests.append(Received(self.path, headers, head, body))
            self._answer(trouble, receiver.answer)

        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json" if self.path.startswith("/api/") else "text/plain")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


def _mlflow_answer(path: str, body: bytes) -> bytes:
    """Answer like an MLflow server that has every requested trace in experiment 7."""
    answer: dict[str, Any] = {}
    if path.endswith("/experiments/search"):
        answer = {"experiments": [{"experiment_id": "7"}]}
    elif path.endswith("/traces/search"):
        request = json.loads(body)
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "7"}}
        ids = re.findall("tr-[0-9a-f]{32}", request["filter"]) if request.get("locations") else []
        answer = {"traces": [{"trace_id": trace_id, "trace_location": place} for trace_id in ids]}
    return json.dumps(answer).encode()


def make_certificate(directory: Path) -> Path:
    """Return a file with a self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    plain = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, pkcs8, plain))
    return path
