"""``agent-gateway doctor -- COMMAND``: runs a program and prints its requests."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.text import Text

from agent_gateway_client.cli.run import environment_for, not_started
from agent_gateway_client.doctor.program import Request, Run, run_recorded
from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE


def examine_program(
    command: Sequence[str], gateway: str | None, tracking_uri: str | None, wait: float, *, json_output: bool
) -> int:
    """Run a program, and print its requests and advice.

    Args:
        command: The program and its arguments.
        gateway: The gateway, or ``None`` for those of the environment.
        tracking_uri: Where to look for mirrors; ``None`` to skip that.
        wait: How many seconds to wait for mirrors after the program has ended.
        json_output: Whether to print JSON.

    Returns:
        The exit status: the program's if it is not 0; else 1 if a request has no trace context or no mirror, or no
        request went to a gateway; else 0.
    """
    environment = environment_for([gateway] if gateway else [])
    try:
        run = run_recorded(command, environment, stdout_to_stderr=json_output)
    except OSError as error:
        return not_started(command, error)
    if tracking_uri:
        from agent_gateway_client.doctor.arrivals import with_mirrors
        from agent_gateway_client.traces.read import client_for

        run = run._replace(requests=with_mirrors(run.requests, client_for(tracking_uri), wait))
    gateways = environment[GATEWAY_URLS_VARIABLE]
    if json_output:
        click.echo(json.dumps(_as_json(run, gateways), indent=2))
    else:
        _show(run, gateways)
    if run.exit_status:
        return run.exit_status if run.exit_status > 0 else 128 - run.exit_status
    return 0 if run.ok else 1


def _as_json(run: Run, gateways: str) -> dict[str, object]:
    return {
        "ok": run.ok,
        "exit_status": run.exit_status,
        "gateways": gateways.split(","),
        "requests": [request._asdict() for request in run.requests],
        "advice": run.advice(gateways),
    }


def _show(run: Run, gateways: str) -> None:
    console = Console()
    for request in run.requests:
        mark, style = _mark(request)
        carried = f" [span {request.span_id}]" if request.span_id else ""
        carried += _MIRROR[request.mirror]
        if request.outcome != "not a gateway" and not request.is_model_call:
            carried += ", not a model call"
        if request.is_assumed:
            carried += ", covered only by agent-gateway run"
        console.print(
            Text.assemble((f"{mark:>7}", style), f"  {request.url}: {request.reason}{carried}"), soft_wrap=True
        )
    for advice in run.advice(gateways):
        console.print(Text.assemble("What to do: ", (advice, "bold")), soft_wrap=True)
    if run.ok:
        arrived = " and has its mirror" if any(request.mirror for request in run.requests) else ""
        console.print(Text(f"Every request to a gateway carries its span{arrived}.", style="bold green"))


_MIRROR = {None: "", True: ", mirror arrived", False: ", no mirror"}


def _mark(request: Request) -> tuple[str, str]:
    if request.is_broken:
        return "BROKEN", "bold red"
    if request.outcome == "not a gateway":
        return "-", "dim"
    return request.outcome, "green"
