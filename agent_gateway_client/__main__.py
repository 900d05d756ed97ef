"""``python -m agent_gateway_client`` is the command ``agent-gateway``."""

from agent_gateway_client.cli import main

main()
