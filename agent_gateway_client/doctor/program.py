"""Runs a program with a recorder, and reports whether each request carries the trace context, and why."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from agent_gateway_client.auto import RECORD_VARIABLE
from agent_gateway_client.http._notes import WEBSOCKET
from agent_gateway_client.server.routes import is_model_call

_MLFLOWS_OWN = "/mlflow/invocations"
"""The end of a route that only MLflow's gateway has."""

_REALTIME = "/realtime"


class Request(NamedTuple):
    """A request of the program.

    Attributes:
        method: The HTTP method, or ``WEBSOCKET``.
        url: The URL without credentials and query.
        outcome: ``"sent"``, ``"kept"``, ``"no span"`` or ``"not a gateway"``.
        reason: The reason for the outcome, as a clause.
        trace_id: The parent's trace id, if this package added it.
        span_id: The parent's span id, if this package added it.
        traceparent: The request's ``traceparent``.
        pid: The id of the process that sent it.
        near_miss: Whether it was probably meant to go to a gateway.
        is_assumed: Whether the program has not configured the gateway itself, so that only ``agent-gateway run`` covers
            the request.
        uses_client: Whether the program uses this package itself.
        mirror: Whether its mirror has arrived; ``None`` if that was not checked, or none is expected.
    """

    method: str
    url: str
    outcome: str
    reason: str
    trace_id: str | None
    span_id: str | None
    traceparent: str | None
    pid: int
    near_miss: bool
    is_assumed: bool = False
    uses_client: bool = False
    mirror: bool | None = None

    @property
    def is_model_call(self) -> bool:
        """Whether every gateway with the companion mirrors it. Lists, files and health checks are not mirrored."""
        path = urlsplit(self.url).path
        if self.method == WEBSOCKET:
            return path.rstrip("/").endswith(_REALTIME)
        return is_model_call({"method": self.method, "path": path}) or path.endswith(_MLFLOWS_OWN)

    @property
    def lacks_span(self) -> bool:
        """Whether it is a model call to a gateway without an active span."""
        return self.outcome == "no span" and self.is_model_call

    @property
    def is_broken(self) -> bool:
        """Whether it lacks the trace context or the mirror that it should have."""
        return self.lacks_span or self.near_miss or self.mirror is False or self.is_missed

    @property
    def is_missed(self) -> bool:
        """Whether it is a model call that the program's own use of this package does not cover."""
        return self.is_assumed and self.uses_client and self.is_model_call and self.outcome != "kept"


class Run(NamedTuple):
    """The result of running the program.

    Attributes:
        exit_status: The exit status; negative for a signal, as in :mod:`subprocess`.
        requests: All requests with instrumented libraries, in the order in which they were sent.
    """

    exit_status: int
    requests: list[Request]

    @property
    def ok(self) -> bool:
        """Whether the program succeeded and called a gateway, and no trace context or mirror is missing."""
        return self.exit_status == 0 and self.reached and not any(request.is_broken for request in self.requests)

    @property
    def reached(self) -> bool:
        """Whether a gateway was called with a trace context."""
        return any(request.outcome in ("sent", "kept") for request in self.requests)

    def advice(self, gateways: str) -> list[str]:
        """Return advice, one or two sentences for each kind of mistake."""
        found = [
            f"{request.url}: {request.reason}. Give the program and the gateway's URL the same spelling."
            for request in self.requests
            if request.near_miss
        ]
        if any(request.lacks_span or (not self.reached and request.outcome == "no span") for request in self.requests):
            found.append(
                "A gateway was called while no span was active. Make the call inside mlflow.start_span(), a function "
                "with @mlflow.trace, or under autolog. Where there is a span, MLflow could not record it: call "
                "mlflow.set_tracking_uri() and mlflow.set_experiment() first."
            )
        if any(request.is_missed for request in self.requests):
            found.append(
                "The program uses agent-gateway-client, but its set-up does not cover a model call, which carries "
                "its span only under agent-gateway run. Is the client wrapped, is the handler an open instance "
                "among the run's callbacks, and was instrument() called before the request?"
            )
        if any(request.mirror is False for request in self.requests):
            found.append(
                "A mirror has not arrived. Run agent-gateway doctor --gateway URL --model MODEL to find the broken "
                "link. --wait gives slow mirrors more time."
            )
        if not self.requests:
            found.append(
                "No request was recorded. Is the program written in Python, and run without -I, -E and -S in an "
                "environment with agent-gateway-client? HTTP libraries that instrument() does not cover need "
                "trace_headers(url)."
            )
        elif not found and not self.reached:
            found.append(f"Nothing was sent to a gateway ({gateways}). Is the model's base URL one of them?")
        if self.exit_status:
            found.append(f"The program exited with status {self.exit_status}; see its output.")
        return list(dict.fromkeys(found))


def run_recorded(command: Sequence[str], environment: Mapping[str, str], *, stdout_to_stderr: bool = False) -> Run:
    """Run a command, and record its requests and those of its child processes.

    Args:
        command: The program and its arguments.
        environment: The environment that ``agent-gateway run`` would use.
        stdout_to_stderr: Whether to send its output to standard error.

    Raises:
        OSError: The command cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="agent-gateway-") as directory:
        record = Path(directory, "requests")
        record.touch()
        process = subprocess.Popen(
            command,
            env={**environment, RECORD_VARIABLE: str(record)},
            stdout=sys.stderr.fileno() if stdout_to_stderr else None,
        )
        status = _wait(process)
        lines = record.read_text().splitlines()
    return Run(status, [Request(**json.loads(line)) for line in lines])


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The terminal has sent it to the program too, which decides what to do.
            continue
