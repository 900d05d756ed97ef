"""What the command says when something is not there, a package or a folder: one sentence, with what to do."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent_gateway_client._install import install_command
from agent_gateway_client.cli.app import app

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

module = sys.argv.pop(1)
sys.meta_path.insert(0, Absent())
from agent_gateway_client.cli import main
main()
"""
CLI = install_command("cli")
DEMO = install_command("cli", "openai", "mlflow-gateway")


def said(*command: str, without: str) -> tuple[int, str, str]:
    words = [sys.executable, "-c", WITHOUT, without, *command]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    return ended.returncode, ended.stdout, ended.stderr.strip()


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("click", f"agent-gateway needs the package click: {CLI}"),
        ("rich", f"agent-gateway needs the package rich: {CLI}"),
        ("mlflow", f"Error: the demo needs mlflow: {DEMO}"),
        ("mlflow.server", f"Error: the demo needs mlflow: {DEMO}"),
        ("openai", f"Error: the demo needs openai: {DEMO}"),
    ],
)
def test_a_missing_package_is_named(module: str, sentence: str):
    assert said("demo", without=module) == (1, "", sentence)


def test_the_help_loads_no_rich():
    """Importing rich takes longer than all else that --help does."""
    status, output, error = said("--help", without="rich")
    assert (status, error) == (0, "")
    assert "doctor" in output


def test_a_trace_without_a_server_to_read_it_from(monkeypatch: pytest.MonkeyPatch):
    """An agent's environment has mlflow-tracing, which is MLflow without its stores."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for command in (["trace", "--last"], ["trace", "tr-1"]):
        status, output, error = said(*command, without="mlflow.store.tracking.sqlalchemy_store")
        assert (status, output) == (1, "")
        assert error.startswith("Error: No server to read the trace from: set MLFLOW_TRACKING_URI")
        assert "Traceback" not in error


def test_mlflows_gateway_without_mlflows_server():
    """The companion's module says what to install, wherever it is imported from."""
    program = (
        "import importlib.util as u, sys\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'mlflow.server' else found(name, package)\n"
        "try:\n    import agent_gateway_client.server.mlflow_gateway\n"
        "except ImportError as error:\n    print(type(error).__name__, error)\n"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == (
        f"MissingDependencyError MLflow's server is not installed: {install_command('mlflow-gateway')}"
    )


def test_a_page_that_cannot_be_written(tmp_path: Path):
    """Said before anything is asked for."""
    told = CliRunner().invoke(app, ["trace", "tr-1", "--html", str(tmp_path / "no" / "trace.html")])
    assert told.exit_code == 2
    assert f"There is no folder '{tmp_path / 'no'}'" in told.output


def test_the_module_is_the_command():
    words = [sys.executable, "-m", "agent_gateway_client", "--help"]
    output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert output.startswith("Usage: agent-gateway [OPTIONS] COMMAND")


def test_help_is_not_cut():
    """Each command is said in a sentence that fits into a terminal's 80 columns."""
    lines = CliRunner().invoke(app, ["--help"], terminal_width=80).output.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert [line.split()[0] for line in commands] == ["demo", "doctor", "relay", "run", "trace"]
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)
