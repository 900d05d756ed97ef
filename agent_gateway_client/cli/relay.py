"""``agent-gateway relay``: receives gateways' OTLP and writes mirrors without payload."""

from __future__ import annotations

import contextlib
import os

import click

from agent_gateway_client.cli._mlflow import tracking_uri_option

_SECONDS = click.FloatRange(0.1, 600.0)


@click.command(short_help="Receive gateways' OTLP, add mirrors to their callers' traces.")
@click.option("--port", default=4318, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 for a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. Others need a token.")
@tracking_uri_option
@click.option(
    "--settle", default=2.0, show_default=True, type=_SECONDS, help="Seconds from a call's end to its mirror."
)
@click.option(
    "--wait", default=10.0, show_default=True, type=_SECONDS, help="Seconds to wait for spans that arrive late."
)
@click.option(
    "--max-spans", default=100_000, show_default=True, type=click.IntRange(100), help="Beyond it, answer 429."
)
def relay(port: int, host: str, tracking_uri: str | None, settle: float, wait: float, max_spans: int) -> None:
    """Receive the traces of gateways over OTLP/HTTP, and add mirrors without payload to the callers' traces.

    For gateways that continue traceparent and export OpenTelemetry themselves. Point their exporter here, with
    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 if they read the standard variables.

    Mirrors go to MLflow, or with AGENT_GATEWAY_EXPORTER=otlp to the endpoint in the relay's OTEL_EXPORTER_OTLP_*
    variables. Addresses other than loopback require AGENT_GATEWAY_RELAY_TOKEN, which gateways send as
    'Authorization: Bearer ...'. GET /health returns counts of received and mirrored calls.
    """
    is_otlp = os.environ.get("AGENT_GATEWAY_EXPORTER") == "otlp"
    if not is_otlp and not tracking_uri:
        raise click.UsageError("Where do the agents' traces go? Give --tracking-uri or set MLFLOW_TRACKING_URI.")
    if tracking_uri:
        os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
    from agent_gateway_client.relay.limits import Limits
    from agent_gateway_client.relay.serve import check_address, listen, serve, token_from_environment, url_of
    from agent_gateway_client.server.shared import shared_exporter

    limits = Limits(spans=max_spans, settle_seconds=settle, wait_seconds=wait)
    token = token_from_environment()
    check_address(host, port, token)
    with listen(host, port) as listening, contextlib.suppress(KeyboardInterrupt):
        exporter = shared_exporter()
        click.echo(f"Send traces to {url_of(listening)}; mirrors go to {'OTLP' if is_otlp else 'MLflow'}.")
        serve(exporter, listening, token=token, limits=limits)
