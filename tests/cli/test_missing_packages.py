"""What the command says when an optional package is not installed: one sentence, with what to install."""

import subprocess
import sys

import pytest


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
    # None in sys.modules is how Python itself marks a module as not there.
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['agent-gateway', 'demo']\n"
        "from agent_gateway_client.cli import main\n"
        "main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (1, "", sentence)
