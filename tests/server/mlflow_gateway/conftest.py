"""A store for MLflow's tracing in this process."""

from collections.abc import Iterator

import mlflow
import pytest

from tests.support.mlflow_database import database_in


@pytest.fixture(scope="module", autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use it instead of ./mlflow.db, which another process of pytest, or another version of MLflow, may have made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", database_in(tmp_path_factory.mktemp("store")))
        mlflow.tracing.reset()
        yield
    mlflow.tracing.reset()
