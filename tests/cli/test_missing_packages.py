"""What the command says when an optional package is not installed: one sentence, with what to install."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

module = sys.argv.pop()
sys.meta_path.insert(0, Absent())
from agent_gateway_client.cli import main
sys.argv.append("demo")
main()
"""


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("click", "agent-gateway needs the package click: pip install 'agent-gateway-client[cli]'"),
        ("rich", "agent-gateway needs the package rich: pip install 'agent-gateway-client[cli]'"),
        ("mlflow", "Error: the demo needs mlflow: pip install 'agent-gateway-client[cli,openai,mlflow-gateway]'"),
        (
            "mlflow.server",
            "Error: the demo needs mlflow: pip install 'agent-gateway-client[cli,openai,mlflow-gateway]'",
        ),
        ("openai", "Error: the demo needs openai: pip install 'agent-gateway-client[cli,openai,mlflow-gateway]'"),
    ],
)
def test_a_missing_package_is_named(module: str, sentence: str):
    command = [sys.executable, "-c", WITHOUT, module]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (1, "", sentence)
