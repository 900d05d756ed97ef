"""A store for the tests of the exporter that need MLflow's own."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.mlflow_database import database_in
from tests.support.server import begin_trace

if TYPE_CHECKING:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore


@pytest.fixture
def store(tmp_path: Path) -> "Iterator[SqlAlchemyStore]":
    """MLflow's SQL store with the trace of the tests' calls, in a database of the test."""
    # The small environment has the store's tests left out, and not MLflow's server.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(database_in(tmp_path), "mlflow-artifacts:/")
    begin_trace(store)
    yield store
    store.engine.dispose()
