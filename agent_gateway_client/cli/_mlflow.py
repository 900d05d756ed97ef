"""What the commands that talk to an MLflow server have in common."""

from __future__ import annotations

import os

import click

_PATIENCE = {
    # MLflow's own: seven tries with growing pauses, which is minutes of silence for a person at a terminal.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def _answer_soon(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    for name, setting in _PATIENCE.items():
        os.environ.setdefault(name, setting)
    return value


tracking_uri_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    callback=_answer_soon,
    help="Where the agent's traces go; by default $MLFLOW_TRACKING_URI.",
)
