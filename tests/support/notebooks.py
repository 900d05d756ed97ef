"""Executes the tutorials. As a program, it writes the outputs back: ``python -m tests.support.notebooks [NAME …]``."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from agent_gateway_client.demo.gateway import DemoGateway
from agent_gateway_client.demo.running import DEMO_VARIABLE

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
COMMAND = "agent-gateway"
TIMEOUT_S = 240

SHOWN_URI = "http://127.0.0.1:5000"
"""Shown in the tutorials instead of the gateway's actual address."""


class _Client(NotebookClient):
    """Starts the kernel with another interpreter than the one of its kernel spec."""

    python = sys.executable

    def create_kernel_manager(self) -> Any:
        manager = super().create_kernel_manager()
        assert manager.kernel_spec is not None
        manager.kernel_spec.argv[0] = self.python
        return manager


def execute(path: Path, gateway: DemoGateway, python: str = sys.executable) -> Any:
    """Return a notebook with the outputs of running it from top to bottom against a gateway.

    Args:
        path: The notebook.
        gateway: The gateway.
        python: What runs its kernel and its commands.
    """
    notebook = nbformat.read(path, as_version=4)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "OTEL_", "LITELLM_"))}
    env = {
        **inherited,
        DEMO_VARIABLE: f"{gateway.tracking_uri},{gateway.provider.url}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # A new experiment is reported once per server, not in each run.
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PATH": os.pathsep.join([*_commands_for(python), os.environ.get("PATH", "")]),
        "MPLCONFIGDIR": str(gateway.log_path.parent / "matplotlib"),
        "IPYTHONDIR": str(gateway.log_path.parent / "ipython"),
        "COLUMNS": "120",
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }
    resources = {"metadata": {"path": str(gateway.log_path.parent)}}
    client = _Client(notebook, timeout=TIMEOUT_S, resources=resources)
    client.python = python
    client.execute(env=env)
    for cell in notebook.cells:
        _tidy(cell, gateway)
    return notebook


def _commands_for(python: str) -> list[str]:
    """Return the folders to put on the PATH, so that ``agent-gateway`` runs with the given interpreter."""
    folder = Path(sys.executable).parent
    if python == sys.executable:
        return [str(folder)]
    # One per process of pytest, so that none rewrites a script that another is running.
    own = Path(python).parent / f"commands-{os.getpid()}"
    own.mkdir(exist_ok=True)
    (own / COMMAND).write_text(f'#!/bin/sh\nexec {python} {folder / COMMAND} "$@"\n')
    (own / COMMAND).chmod(0o755)
    return [str(own), str(folder)]


def _tidy(cell: Any, gateway: DemoGateway) -> None:
    """Remove what is specific to this machine from a cell's outputs."""
    cell.metadata.pop("execution", None)
    joined: list[Any] = []
    for output in cell.get("outputs", []):
        # A stream is split into outputs at random.
        if joined and output.output_type == "stream" and joined[-1].get("name") == output.get("name"):
            joined[-1].text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            output.text = _shown(output.text, gateway)
        else:
            output.data = {
                kind: _shown(data, gateway) if kind.startswith("text/") else data
                for kind, data in output.get("data", {}).items()
            }
    if "outputs" in cell:
        cell.outputs = joined


_ANSI = re.compile(r"\x1b\[[\d;]*m|\x1b\]8;.*?\x1b\\")
"""Terminal colours and links, which code-hosting sites show as raw text."""


def _shown(text: str, gateway: DemoGateway) -> str:
    text = _ANSI.sub("", text)
    host = gateway.tracking_uri.removeprefix("http://")
    text = text.replace(gateway.tracking_uri, SHOWN_URI).replace(host, SHOWN_URI.removeprefix("http://"))
    return re.sub(r"127\.0\.0\.1:(?!5000\b)\d+", "127.0.0.1:8000", text)


def kinds(notebook: Any) -> list[list[str]]:
    """Return the kinds of outputs of each cell, and the names of the spans that it draws."""
    found = []
    for cell in notebook.cells:
        of_cell = []
        for output in cell.get("outputs", []):
            of_cell.append(output.get("name") or ",".join(sorted(output.get("data", {}))) or output.output_type)
            html = output.get("data", {}).get("text/html", "")
            of_cell += re.findall(r'<span class="name">.*?<b>([^<]*)</b>', html)
        found.append(of_cell)
    return found


def main(names: list[str]) -> None:
    """Execute the tutorials whose names contain one of these, or all, and write the outputs back."""
    with DemoGateway(progress=print) as gateway:
        for path in NOTEBOOKS:
            if not names or any(name in path.name for name in names):
                print(path.name, flush=True)
                nbformat.write(execute(path, gateway), path)


if __name__ == "__main__":
    main(sys.argv[1:])
