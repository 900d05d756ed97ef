"""Every code block of the README and the guides: Python runs against a real gateway, commands are checked."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from itertools import chain
from pathlib import Path

import click
import pytest
import yaml
from packaging.requirements import Requirement

from agent_gateway_client.cli.app import app
from agent_gateway_client.demo.gateway import DemoGateway
from tests.support import warm_python
from tests.support.e2e import DEADLINE_S
from tests.support.integrations import marks_of, python_of

ROOT = Path(__file__).parents[2]
FOLDERS = ("", "docs/", "integrations/*/", "integrations/", "notebooks/", "deploy/")
GUIDES = sorted({path for folder in FOLDERS for path in ROOT.glob(f"{folder}*.md")})
LOCALHOST = re.compile(r"http://(?:localhost|127\.0\.0\.1):5000")


def blocks(guide: Path, *languages: str) -> list[str]:
    """Return the code blocks of a guide in one of the languages."""
    fences: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", guide.read_text(), re.MULTILINE | re.DOTALL)
    return [code for language, code in fences if language in languages]


def guides_with(*languages: str, run: bool = False) -> list[object]:
    return [
        pytest.param(guide, id=str(guide.relative_to(ROOT)), marks=marks_of(guide.parent) if run else [])
        for guide in GUIDES
        if blocks(guide, *languages)
    ]


@pytest.mark.parametrize("guide", guides_with("python", run=True))
def test_python(guide: Path, gateway: DemoGateway, tmp_path: Path):
    """The Python of a guide runs from top to bottom, as one program, with the gateway at the guide's address."""
    program = tmp_path / "program.py"
    program.write_text(LOCALHOST.sub(gateway.tracking_uri, "\n".join(blocks(guide, "python"))))
    done = subprocess.run(
        [*python_for(guide.parent), str(program)],
        cwd=guide.parent,
        env={**os.environ, "MLFLOW_TRACKING_URI": gateway.tracking_uri, "PYTHONPATH": pythonpath(guide.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr


def python_for(folder: Path) -> list[str]:
    """Return the Python for a guide; that of a folder whose agent another test starts like a user's is warm."""
    python = python_of(folder)
    if python == sys.executable and (folder / "agent.py").exists():
        return [warm_python.interpreter()]
    return [python, "-W", "ignore"]


def pythonpath(folder: Path) -> str:
    """Return a search path with a guide's own files, as if they were next to its program."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.mark.parametrize("guide", guides_with("sh"))
def test_commands(guide: Path, gateway: DemoGateway):
    """The commands of a guide exist, and accept the options in the guide."""
    lines = "\n".join(blocks(guide, "sh")).replace("\\\n", " ").splitlines()
    for line in lines:
        words = shlex.split(LOCALHOST.sub(gateway.tracking_uri, line), comments=True)
        while words and re.fullmatch(r"export|&|[A-Z_]+=.*", words[0]):
            del words[0]
        if words:
            check = COMMANDS.get(Path(words[0]).name)
            assert check is not None, f"{line!r} is a command that this test does not know"
            check([word for word in words[1:] if word != "&"], guide.parent)


def check_pip(words: list[str], folder: Path) -> None:
    assert words[0] == "install"
    # Such a folder is a checkout of this package: see tests/docs/test_pages.py.
    wanted = [re.sub(r"^\.[./]*", "agent-gateway-client", word) for word in words[1:] if word != "-r"]
    files = [(folder / word).read_text().splitlines() if ".txt" in word else [word] for word in wanted]
    for requirement in map(Requirement, chain.from_iterable(files)):
        if requirement.name == "agent-gateway-client":
            assert requirement.extras <= set(metadata.metadata("agent-gateway-client").get_all("Provides-Extra", []))


def check_make(words: list[str], folder: Path) -> None:
    targets = re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in words if "=" not in word} <= set(targets)


def check_click(command: click.Command) -> Callable[[list[str], Path], None]:
    def check(words: list[str], folder: Path) -> None:
        name, *rest = words
        assert isinstance(command, click.Group)
        command.commands[name].make_context(name, rest)

    return check


def check_mlflow(words: list[str], folder: Path) -> None:
    # Takes a second, which processes that run other tests save.
    import mlflow.cli

    check_click(mlflow.cli.cli)(words, folder)


def check_file(words: list[str], folder: Path) -> None:
    if words[0] not in ("-c", "-m"):
        assert (folder / words[0]).is_file(), f"{folder.name} has no {words[0]}"


def check_module(words: list[str], folder: Path) -> None:
    name = next(word for word in words if re.fullmatch(r"[\w.]+:\w+", word) and not word[0].isdigit())
    where = words[words.index("--app-dir") + 1] if "--app-dir" in words else "."
    assert (folder / where / f"{name.partition(':')[0]}.py").is_file()


def check_config(words: list[str], folder: Path) -> None:
    assert (folder / words[words.index("--config") + 1]).is_file()


def check_jupyter(words: list[str], folder: Path) -> None:
    assert words[0] == "lab"
    assert list((ROOT / words[1]).glob("*.ipynb"))


def check_phoenix(words: list[str], folder: Path) -> None:
    # It has its own environment; tests/e2e/test_phoenix.py starts it.
    assert words == ["serve"]


def check_elsewhere(words: list[str], folder: Path) -> None:
    # The program cannot be installed here, and the guide says so.
    assert "## Not run here" in (folder / "README.md").read_text()


COMMANDS: dict[str, Callable[[list[str], Path], None]] = {
    "pip": check_pip,
    "make": check_make,
    "agent-gateway": check_click(app),
    "mlflow": check_mlflow,
    "jupyter": check_jupyter,
    "phoenix": check_phoenix,
    "python": check_file,
    "python3": check_file,
    "gunicorn": check_module,
    "helm": check_elsewhere,
    "vllm": check_elsewhere,
    "sh": check_file,
    "uvicorn": check_module,
    "litellm": check_config,
}


@pytest.mark.parametrize("guide", guides_with("yaml"))
def test_yaml(guide: Path, monkeypatch: pytest.MonkeyPatch):
    """A configuration is valid YAML, and the names of this package in it exist."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    for block in blocks(guide, "yaml"):
        yaml.safe_load(block)
        for path in re.findall(r"agent_gateway_client(?:\.\w+)+", block):
            module, _, name = path.rpartition(".")
            __import__(module)
            assert hasattr(sys.modules[module], name)


@pytest.mark.parametrize("guide", guides_with("json"))
def test_json(guide: Path):
    """A configuration is valid JSON."""
    for block in blocks(guide, "json"):
        json.loads(block)


def test_every_block_is_of_a_kind_that_is_checked():
    """Text is a picture or an output; a block in another language would not be run by any test."""
    languages = {
        language for guide in GUIDES for language in re.findall(r"^```(\w+)$", guide.read_text(), re.MULTILINE)
    }
    assert languages <= {"json", "python", "sh", "text", "yaml"}


def test_every_variable_is_documented():
    """The package reads exactly the variables that docs/configuration.md lists."""
    pattern = r"AGENT_GATEWAY_[A-Z_]+"
    sources = [path.read_text() for path in (ROOT / "agent_gateway_client").rglob("*.py")]
    read = {name for source in sources for name in re.findall(rf'"({pattern})"', source)}
    assert read
    assert set(re.findall(pattern, (ROOT / "docs/configuration.md").read_text())) == read


def test_every_link_leads_somewhere():
    """A relative link in a guide points to a file or folder of the repository."""
    for guide in GUIDES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", guide.read_text()):
            assert (guide.parent / target).exists(), f"{guide.relative_to(ROOT)} links to {target}"
