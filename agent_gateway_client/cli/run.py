"""``agent-gateway run``: adds trace context to a program's requests to gateways without changing its code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import click

from agent_gateway_client.gateways import GATEWAY_URLS_VARIABLE, Gateways

_SITE = Path(__file__).parents[1] / "auto" / "site"

gateway_option = click.option(
    "--gateway",
    "gateways",
    multiple=True,
    help=f"A gateway's URL, like http://localhost:5000/gateway; may be repeated. Default: ${GATEWAY_URLS_VARIABLE}.",
)


@click.command(
    short_help="Run a program whose requests to gateways carry the context.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@gateway_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(gateways: tuple[str, ...], command: tuple[str, ...]) -> None:
    """Run COMMAND, and add the trace context to requests that it and its child processes send to the gateways.

    No code changes are needed: agent-gateway run -- python my_agent.py. The HTTP libraries, LiteLLM and LangChain are
    instrumented when the program imports them. The exit status is the program's.
    """
    environment = environment_for(gateways)
    if sys.platform == "win32":
        raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)
    replace_process(command, environment)


def environment_for(gateways: Sequence[str]) -> dict[str, str]:
    """Return an environment in which Python starts instrumented.

    Raises:
        ConfigurationError: A gateway is not a URL.
        click.UsageError: No gateway is configured.
    """
    known = Gateways(gateways) or Gateways.from_environment()
    if not known:
        raise click.UsageError(f"Which URLs are gateways? Give --gateway or set {GATEWAY_URLS_VARIABLE}.")
    path = os.pathsep.join(filter(None, [str(_SITE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, GATEWAY_URLS_VARIABLE: ",".join(known), "PYTHONPATH": path}


def replace_process(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by the command, which gets the signals and the terminal."""
    try:
        os.execvpe(command[0], list(command), environment)
    except OSError as error:
        raise SystemExit(not_started(command, error)) from None


def not_started(command: Sequence[str], error: OSError) -> int:
    """Print why a command could not be started; returns the exit status that shells use for it."""
    click.echo(f"Error: {command[0]}: {error.strerror}", err=True)
    return 127 if isinstance(error, FileNotFoundError) else 126
