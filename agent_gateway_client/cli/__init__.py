"""The command ``agent-gateway``."""

import sys

from agent_gateway_client._install import install_command
from agent_gateway_client.errors import AgentGatewayError


def main() -> None:
    """Run the command. Errors of this package are printed without a traceback."""
    try:
        from agent_gateway_client.cli.app import app

        app(prog_name="agent-gateway")
    except ModuleNotFoundError as error:
        # The commands import rich when they print: --help takes a third of the time without it.
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"agent-gateway needs the package {error.name}: {install_command('cli')}")
    except AgentGatewayError as error:
        sys.exit(f"Error: {error}")
