"""``agent-gateway doctor``: finds the broken link between an agent's trace and its gateway."""

from __future__ import annotations

import json
import logging

import click

from agent_gateway_client.cli._mlflow import tracking_uri_option


@click.command(
    short_help="Find the broken link of a trace, or list a program's requests.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--gateway", help="The gateway's URL, like http://localhost:5000/gateway.")
@click.option("--model", help="The endpoint or model to call.")
@tracking_uri_option
@click.option("--api-key", envvar="AGENT_GATEWAY_API_KEY", help="The gateway's API key; or $AGENT_GATEWAY_API_KEY.")
@click.option("--relay", help="The relay of the gateway's spans. Without --gateway, only the relay is examined.")
@click.option("--experiment", default="agent-gateway doctor", show_default=True, help="The probe's experiment.")
@click.option("--wait", default=30.0, show_default=True, type=click.FloatRange(0.1), help="Seconds to wait for spans.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def doctor(
    gateway: str | None,
    model: str | None,
    tracking_uri: str | None,
    api_key: str | None,
    relay: str | None,
    experiment: str,
    wait: float,
    json_output: bool,
    command: tuple[str, ...],
) -> None:
    """Send one call through a gateway, and report which link to its mirror in the trace is broken.

    Works with MLflow's gateway, the LiteLLM Proxy, gateways with the middleware, and with --relay gateways that export
    OpenTelemetry. The call is a short chat, and its trace stays in MLflow. The exit status is 0 only if all links hold.

    With --relay alone, no call is sent: the relay's counts show what it received, what waits, and what was dropped and
    why. Set AGENT_GATEWAY_RELAY_TOKEN if the relay requires a token.

    With a COMMAND (agent-gateway doctor -- python my_agent.py), run that program instead and list its requests: the
    URL, whether it carries the trace context and why, and the span.
    """
    if command and relay:
        raise click.UsageError("Use --relay with --gateway and --model, or alone.")
    if command:
        from agent_gateway_client.cli._program import examine_program

        raise SystemExit(examine_program(command, gateway, tracking_uri, wait, json_output=json_output))
    only_relay = bool(relay and not gateway and not model)
    for name, value in (("--gateway", gateway), ("--model", model)):
        if not value and not only_relay:
            raise click.UsageError(f"Missing option '{name}', or a command to run.")
    if not tracking_uri and not only_relay:
        raise click.UsageError("Where do the agent's traces go? Give --tracking-uri or set MLFLOW_TRACKING_URI.")
    from rich.console import Console
    from rich.text import Text

    from agent_gateway_client.doctor.checks import Check, Settings
    from agent_gateway_client.doctor.examine import examine
    from agent_gateway_client.doctor.relay import examine_relay

    # MLflow logs about its queue when the process ends.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    console = Console(stderr=json_output)

    def show(check: Check) -> None:
        mark, style = ("ok", "green") if check.ok else ("BROKEN", "bold red")
        console.print(Text.assemble((f"{mark:>6}", style), f"  {check.name}: ", (check.detail, "")), soft_wrap=True)
        if not check.ok:
            console.print(Text.assemble("        What to do: ", (check.fix, "bold")), soft_wrap=True)

    on_check = (lambda check: None) if json_output else show
    if gateway and model and tracking_uri:
        checks = examine(Settings(gateway, model, tracking_uri, api_key, experiment, wait, relay), on_check)
    else:
        assert relay
        checks = examine_relay(relay, wait, on_check)
    ok = all(check.ok for check in checks)
    if json_output:
        click.echo(json.dumps({"ok": ok, "checks": [check._asdict() for check in checks]}, indent=2))
    elif ok:
        console.print(Text("All links hold.", style="bold green"))
    raise SystemExit(0 if ok else 1)
