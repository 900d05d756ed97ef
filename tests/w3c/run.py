"""Runs W3C's own conformance tests against this package.

    git clone https://github.com/w3c/trace-context
    python tests/w3c/run.py trace-context/test

The exit status is the number of tests that fail. Further arguments name single tests, such as ``AdvancedTest``.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import mlflow

from agent_gateway_client.demo._port import Reservation
from agent_gateway_client.server.export import Exporter
from tests.support.served import Served
from tests.support.server import MemoryDestination
from tests.w3c.service import make_service


def main(harness: str, *tests: str) -> int:
    """Serve the service, and run the harness in a process of its own."""
    port = Reservation()
    port.release()
    exporter = Exporter(MemoryDestination())
    with tempfile.TemporaryDirectory() as directory:
        mlflow.set_tracking_uri(f"sqlite:///{directory}/mlflow.db")
        # Makes the database, which takes longer than the harness waits for an answer.
        mlflow.set_experiment("w3c")
        environment = {**os.environ, "SPEC_LEVEL": "2", "STRICT_LEVEL": "2", "HARNESS_PORT": str(port.port)}
        with Served(make_service(exporter, [f"http://127.0.0.1:{port.port}"])) as url:
            command = [sys.executable, "test.py", f"{url}/test", *tests]
            status = subprocess.run(command, cwd=harness, env=environment).returncode
        mlflow.flush_trace_async_logging(terminate=True)
    return status


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
