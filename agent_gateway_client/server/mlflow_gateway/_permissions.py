"""Checks with MLflow's ``basic-auth`` whether a user may write to an experiment, when a mirror is written.

It is the check that MLflow makes for spans that a user sends over OTLP.
"""

import asyncio
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracing.utils.otlp import MLFLOW_EXPERIMENT_ID_HEADER, OTLP_TRACES_PATH
from starlette.requests import Request

from agent_gateway_client._guard import Guard
from agent_gateway_client._log import logger
from agent_gateway_client.server.export.destination import Unavailable

_guard = Guard(
    "Could not check with MLflow's basic-auth whether a user may write to an experiment; calls are served and not "
    "mirrored. Set AGENT_GATEWAY_MAY_JOIN to decide it yourself",
    "mlflow",
)


def may_write(username: str, experiment_id: str) -> bool:
    """Return whether a user may send spans to an experiment; false if the check fails.

    Args:
        username: The user's name in MLflow.
        experiment_id: The experiment, in the workspace of the current context.

    Raises:
        Unavailable: MLflow's database of users is not available now.
    """
    is_busy = False
    with _guard:
        try:
            return _check_with_mlflow(username, experiment_id)
        except MlflowException as error:
            # Otherwise the user or the experiment was deleted.
            is_busy = error.error_code == "TEMPORARILY_UNAVAILABLE"
            logger.debug("MLflow's check of a user's permission failed", exc_info=True)
    if is_busy:
        raise Unavailable("MLflow's users cannot be looked up")
    return False


def _check_with_mlflow(username: str, experiment_id: str) -> bool:
    from mlflow.server import auth

    if auth.store.get_user(username).is_admin:
        return True
    lines = [(MLFLOW_EXPERIMENT_ID_HEADER.lower().encode(), experiment_id.encode())]
    request = Request({"type": "http", "method": "POST", "path": OTLP_TRACES_PATH, "headers": lines})
    validate: Any = auth._find_fastapi_validator(OTLP_TRACES_PATH, "POST")
    return asyncio.run(validate(username, request)) is True
