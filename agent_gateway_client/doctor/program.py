"""Runs a program with a recorder, and says for each of its requests whether it carries the trace context, and why."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from agent_gateway_client.auto import RECORD_VARIABLE
from agent_gateway_client.http._notes import WEBSOCKET
from agent_gateway_client.server.routes import is_model_call

_MLFLOWS_OWN = "/mlflow/invocations"
"""The end of a route that no other gateway has."""

_REALTIME = "/realtime"


class Request(NamedTuple):
    """A request of the program.

    Attributes:
        method: HTTP's, or ``WEBSOCKET``.
        url: Where it went, without credentials and query.
        outcome: ``"sent"``, ``"kept"``, ``"no span"`` or ``"not a gateway"``.
        reason: Why, in a sentence.
        trace_id: Of the span that it carries, if this package set it.
        span_id: Likewise.
        traceparent: What it carried.
        pid: The process that sent it.
        near_miss: Whether it was probably meant to go to a gateway.
        is_assumed: Whether the program itself does not name its gateway, so that only ``agent-gateway run`` covers it.
        uses_client: Whether the program uses this package itself.
        mirror: Whether its mirror has arrived; ``None`` where nobody has looked, or none has to arrive.
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
        """Whether every gateway with the companion mirrors such a request, unlike lists, files and health checks."""
        path = urlsplit(self.url).path
        if self.method == WEBSOCKET:
            return path.rstrip("/").endswith(_REALTIME)
        return is_model_call({"method": self.method, "path": path}) or path.endswith(_MLFLOWS_OWN)

    @property
    def lacks_span(self) -> bool:
        """Whether it is a call of a model that went to a gateway without a span."""
        return self.outcome == "no span" and self.is_model_call

    @property
    def is_broken(self) -> bool:
        """Whether it should carry the trace context and does not, or its mirror is missing."""
        return self.lacks_span or self.near_miss or self.mirror is False or self.is_missed

    @property
    def is_missed(self) -> bool:
        """Whether it is a call of a model that the program's own use of this package should cover and does not."""
        return self.is_assumed and self.uses_client and self.is_model_call and self.outcome != "kept"


class Run(NamedTuple):
    """What was seen of the program.

    Attributes:
        exit_status: The program's; negative for a signal, as in :mod:`subprocess`.
        requests: All its requests through instrumented libraries, in the order in which they were sent.
    """

    exit_status: int
    requests: list[Request]

    @property
    def ok(self) -> bool:
        """Whether the program ended well, called a gateway, lost no context on the way and no mirror."""
        return self.exit_status == 0 and self.reached and not any(request.is_broken for request in self.requests)

    @property
    def reached(self) -> bool:
        """Whether a gateway was called with a trace context."""
        return any(request.outcome in ("sent", "kept") for request in self.requests)

    def advice(self, gateways: str) -> list[str]:
        """Return what to do, one sentence or two for each kind of mistake."""
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
                "The program uses agent-gateway-client, but nothing that it has set up covers a call of a model, which "
                "carries its span only under agent-gateway run. Is the client wrapped, the handler an instance that is "
                "open and among the callbacks of the run, and instrument() called before the request?"
            )
        if any(request.mirror is False for request in self.requests):
            found.append(
                "A mirror has not arrived. Run agent-gateway doctor --gateway URL --model MODEL, which finds the link "
                "that is broken. --wait gives slow ones more time."
            )
        if not self.requests:
            found.append(
                "No request was seen. Is the program Python, without -I, -E and -S, in an environment with "
                "agent-gateway-client? Other HTTP libraries than those of instrument() need trace_headers(url)."
            )
        elif not found and not self.reached:
            found.append(f"Nothing was sent to a gateway ({gateways}). Is the model's base URL one of them?")
        if self.exit_status:
            found.append(f"The program ended with status {self.exit_status}; see its own messages.")
        return list(dict.fromkeys(found))


def run_recorded(command: Sequence[str], environment: Mapping[str, str], *, stdout_to_stderr: bool = False) -> Run:
    """Run a command, whose child processes are recorded too.

    Args:
        command: The program and its arguments.
        environment: What ``agent-gateway run`` would run it with.
        stdout_to_stderr: Whether its output goes to standard error.

    Raises:
        OSError: It cannot be started.
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
    return Run(status, [_request(json.loads(line)) for line in lines])


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The program got it as well, from the terminal, and decides what to do.
            continue


def _request(line: dict[str, Any]) -> Request:
    return Request(**line)
