"""New SQLite databases for MLflow: copies of one that MLflow has made, as its migrations take a second each time."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import warm_python

_MAKE = """
import sys
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
SqlAlchemyStore(f"sqlite:///{sys.argv[1]}", "mlflow-artifacts:/").engine.dispose()
"""


def database_in(folder: Path) -> str:
    """Return the URI of a database in a folder; what opens it first makes its tables if they are not there."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    provide(uri)
    return uri


def provide(uri: str) -> None:
    """Copy the database to where a URI has none yet; without a warm Python, MLflow has to make it."""
    path = Path(uri.removeprefix("sqlite:///"))
    python = warm_python.interpreter()
    if python == sys.executable or not uri.startswith("sqlite:///") or path.exists():
        return
    made = Path(python).with_name("mlflow.db")
    if not made.exists():
        # Next to the warm Python, for all of pytest's processes.
        own = made.with_name(f"{os.getpid()}.db")
        subprocess.run([python, "-c", _MAKE, str(own)], check=True, capture_output=True)
        own.rename(made)
    shutil.copyfile(made, path)


def provide_to(server: type[Any]) -> None:
    """Let each `MlflowServer` find its database."""
    spawn = server._spawn

    def spawn_with_database(self: Any) -> Any:
        provide(self._backend_store_uri)
        return spawn(self)

    server._spawn = spawn_with_database  # type: ignore[attr-defined]
