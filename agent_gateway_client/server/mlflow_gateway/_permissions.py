"""Whose calls MLflow's ``basic-auth`` lets write to an experiment, asked of MLflow itself when a mirror is written.

The question is the one that MLflow answers for spans that a user sends over OTLP.
"""

import asyncio
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracing.utils.otlp import MLFLOW_EXPERIMENT_ID_HEADER, OTLP_TRACES_PATH
from starlette.requests import Request

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import logger
from agent_gateway_client.server.export.destination import Unavailable

_asks_mlflow = Guard(
    "Could not ask MLflow's basic-auth which experiments a user may write to; calls are served and not mirrored. "
    "AGENT_GATEWAY_MAY_JOIN can say who may join",
    "mlflow",
)


def may_write(username: str, experiment_id: str) -> bool:
    """Tell whether a user may send spans to an experiment; no, where MLflow cannot be asked.

    Args:
        username: The user's name in MLflow.
        experiment_id: The experiment, in the workspace of the current context.

    Raises:
        Unavailable: MLflow's database of users cannot answer now.
    """
    is_busy = False
    with _asks_mlflow:
        try:
            return _ask(username, experiment_id)
        except MlflowException as error:
            # Else the user or the experiment is gone.
            is_busy = error.error_code == "TEMPORARILY_UNAVAILABLE"
            logger.debug("MLflow did not say whether a user may write to an experiment", exc_info=True)
    if is_busy:
        raise Unavailable("MLflow's users cannot be looked up")
    return False


def _ask(username: str, experiment_id: str) -> bool:
    from mlflow.server import auth

    if auth.store.get_user(username).is_admin:
        return True
    lines = [(MLFLOW_EXPERIMENT_ID_HEADER.lower().encode(), experiment_id.encode())]
    request = Request({"type": "http", "method": "POST", "path": OTLP_TRACES_PATH, "headers": lines})
    validate: Any = auth._find_fastapi_validator(OTLP_TRACES_PATH, "POST")
    return asyncio.run(validate(username, request)) is True
