"""Options of the commands that connect to an MLflow server."""

from __future__ import annotations

import os

import click

_FAIL_FAST = {
    # MLflow's default of seven retries with backoff would be silent for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def _fail_fast(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    for name, setting in _FAIL_FAST.items():
        os.environ.setdefault(name, setting)
    return value


tracking_uri_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    callback=_fail_fast,
    help="Where the agent's traces go; by default $MLFLOW_TRACKING_URI.",
)
