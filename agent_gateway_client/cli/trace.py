"""``agent-gateway trace``: a joined trace in the terminal, as a page, or as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from agent_gateway_client.cli._mlflow import tracking_uri_option

_FILE_COLUMNS = 240


@click.command(short_help="Show a joined trace: a tree, a waterfall, or JSON.")
@click.argument("trace_id", required=False)
@click.option("--last", is_flag=True, help="Show the newest trace that is not a gateway's own.")
@click.option("--experiment", help="With --last: name or id of the experiment to look in; by default all.")
@tracking_uri_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a waterfall for a browser.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of the tree.")
def trace(
    trace_id: str | None,
    last: bool,
    experiment: str | None,
    tracking_uri: str | None,
    html: Path | None,
    json_output: bool,
) -> None:
    """Show the joined trace TRACE_ID: the agent's spans, the gateway's below them, and the gateway's own trace.

    Each span has its duration, status, model, tokens and cost. Inputs and outputs are left out. The last line shows
    where the time went: to the provider, the gateway, the network, or the agent.
    """
    if (trace_id is None) is not last:
        raise click.UsageError("Give either a TRACE_ID or --last.")
    if html is not None and not html.parent.is_dir():
        raise click.BadParameter(f"There is no folder {os.fspath(html.parent)!r}.", param_hint="--html")
    from agent_gateway_client.traces.read import last_trace_id, read_joined

    joined = read_joined(trace_id or last_trace_id(tracking_uri, experiment), tracking_uri)
    if html is not None:
        from agent_gateway_client.traces.waterfall import page

        try:
            html.write_text(page(joined), encoding="utf-8")
        except OSError as error:
            raise click.FileError(os.fspath(html), error.strerror or type(error).__name__) from error
    if json_output:
        click.echo(json.dumps(_as_object(joined), indent=2))
        return
    from rich.console import Console
    from rich.text import Text

    from agent_gateway_client.cli.tree import notes, trace_tree

    console = Console()
    if not console.is_terminal:
        console.width = _FILE_COLUMNS
    console.print(trace_tree(joined))
    for note in notes(joined):
        console.print(note, soft_wrap=True)
    if joined.url:
        console.print(Text(f"In MLflow's UI: {joined.url}"), soft_wrap=True)
    if html is not None:
        console.print(Text(f"The waterfall is in {os.fspath(html)}."), soft_wrap=True)


def _as_object(joined: Any) -> dict[str, Any]:
    from agent_gateway_client.traces.facts import as_objects, total_cost
    from agent_gateway_client.traces.time_spent import time_spent

    info = joined.trace.info
    return {
        "trace_id": joined.trace_id,
        "experiment_id": info.experiment_id,
        "url": joined.url,
        "state": str(info.state),
        "tokens": info.token_usage,
        "cost": total_cost(joined.spans),
        "time_ms": {name: ns / 1e6 for name, ns in time_spent(joined.spans).shares.items()},
        "spans": as_objects(joined.spans),
        "linked": {linked_id: as_objects(spans) for linked_id, spans in joined.linked.items()},
    }
