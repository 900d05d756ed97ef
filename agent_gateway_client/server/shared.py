"""The exporter that all of a process's gateways share when they are given none."""

import threading

from agent_gateway_client._log import warn_once
from agent_gateway_client.server.call import GatewayCall
from agent_gateway_client.server.destinations import destination_from_environment
from agent_gateway_client.server.export import Exporter

_lock = threading.Lock()
_exporter: Exporter | None = None


def shared_exporter() -> Exporter:
    """Return the process's exporter. The first use makes it, as the environment says, and may import MLflow for it.

    Raises:
        AgentGatewayError: A variable has a value that cannot work, or what it needs is not installed.
    """
    global _exporter
    with _lock:
        if _exporter is None:
            _exporter = Exporter(destination_from_environment())
        return _exporter


def submit_to_shared(call: GatewayCall) -> None:
    """Hand a call that has ended to the process's exporter. Returns at once and never raises."""
    if _exporter is not None:
        _exporter.submit(call)
    else:
        # Making the exporter takes as long as importing MLflow does. No daemon: a short-lived process waits for it.
        threading.Thread(target=_submit, args=(call,), name="agent-gateway-start").start()


def _submit(call: GatewayCall) -> None:
    try:
        shared_exporter().submit(call)
    except Exception as error:
        warn_once("shared.exporter", "Gateway calls are not mirrored: %s: %s", type(error).__name__, error)
