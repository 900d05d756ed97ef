"""The group of commands."""

import click

from agent_gateway_client._version import __version__
from agent_gateway_client.cli.demo import demo
from agent_gateway_client.cli.doctor import doctor
from agent_gateway_client.cli.relay import relay
from agent_gateway_client.cli.run import run
from agent_gateway_client.cli.trace import trace


@click.group(name="agent-gateway")
@click.version_option(__version__, prog_name="agent-gateway")
def app() -> None:
    """One trace from the agent to the model, through an LLM gateway."""


app.add_command(demo)
app.add_command(doctor)
app.add_command(relay)
app.add_command(run)
app.add_command(trace)
