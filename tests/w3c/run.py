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

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import mlflow  # noqa: E402
from served import Served  # noqa: E402
from server_support import MemoryDestination  # noqa: E402
from w3c.service import make_service  # noqa: E402

from agent_gateway_client.demo._port import Reservation  # noqa: E402
from agent_gateway_client.server.export import Exporter  # noqa: E402


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
