"""Runs the relay as a program: checks the configuration, opens a socket, starts uvicorn."""

import ipaddress
import os
import socket
from urllib.parse import urlsplit

from agent_gateway_client.errors import ConfigurationError, MissingDependencyError, StartError
from agent_gateway_client.relay.app import TRACES_PATH, Relay
from agent_gateway_client.relay.limits import Limits
from agent_gateway_client.server.bearer import token_in
from agent_gateway_client.server.export import Exporter
from agent_gateway_client.server.observed.companion import Companion

TOKEN_VARIABLE = "AGENT_GATEWAY_RELAY_TOKEN"

_OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OTLP_DEFAULT = "http://localhost:4318"
_CONNECTIONS = 1000
_GRACE_S = 5


def token_from_environment() -> str | None:
    """Return the token that senders must send; ``None`` if the variable is unset or empty.

    Raises:
        ConfigurationError: It is too short, or not valid in a header.
    """
    return token_in(TOKEN_VARIABLE)


def check_address(host: str, port: int, token: str | None) -> None:
    """Check that the relay may listen on an address.

    Raises:
        ConfigurationError: Anybody could send spans, or the relay would send mirrors to itself.
    """
    if token is None and not is_loopback(host):
        raise ConfigurationError(
            f"Without a token the relay listens on loopback only, and {host} is not loopback. Set {TOKEN_VARIABLE}, "
            "and send the same token from the gateways: OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20<token>'."
        )
    if os.environ.get("AGENT_GATEWAY_EXPORTER") != "otlp":
        return
    endpoint = next((value for name in _OTLP_ENDPOINTS if (value := os.environ.get(name))), _OTLP_DEFAULT)
    target = urlsplit(endpoint)
    if target.port == port and target.hostname and (target.hostname == host or is_loopback(target.hostname)):
        raise ConfigurationError(
            f"The relay would send its mirrors to itself, at {endpoint}. Set OTEL_EXPORTER_OTLP_ENDPOINT to the back "
            "end, or give the relay another --port."
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free port.

    Raises:
        StartError: The address is taken or cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise StartError(
            f"The relay cannot listen on {host} port {port}: {error.strerror or error}. Give another --host or --port."
        ) from None


def serve(exporter: Exporter, listening: socket.socket, *, token: str | None, limits: Limits) -> None:
    """Serve until a signal arrives, then send what is held.

    Raises:
        MissingDependencyError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise MissingDependencyError("The relay needs uvicorn: pip install 'agent-gateway-client[relay]'") from None
    companion = Companion(exporter)
    companion.start()
    config = uvicorn.Config(
        Relay(exporter, token=token, limits=limits, is_full=exporter.is_full, companion=companion),
        access_log=False,
        log_level="warning",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listening])


def url_of(listening: socket.socket) -> str:
    """Return the URL for gateways' traces."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{TRACES_PATH}"
