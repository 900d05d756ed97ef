"""Pages that are written from something else are as that is now, and every page can be found."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import agent_gateway_client
import agent_gateway_client.server
from agent_gateway_client.server.export.counts import Reason
from agent_gateway_client.server.observed.metrics import METRICS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", ["costs", "versions"])
def test_a_generated_page_is_up_to_date(name: str):
    """After a change of what it is made from: ``python docs/<name>.py``."""
    script: dict[str, Any] = runpy.run_path(str(DOCS / f"{name}.py"))
    text = (DOCS / f"{name}.md").read_text()
    assert script["page"](text) == text
    assert script["table"]().count("\n|") > 5


def test_every_page_is_in_the_index():
    """And nothing else is."""
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "index.md").read_text()))
    assert linked == {path.name for path in DOCS.glob("*.md")} - {"index.md"}


@pytest.mark.parametrize(
    "package", [agent_gateway_client, agent_gateway_client.server], ids=lambda package: package.__name__
)
def test_the_reference_has_every_public_name(package: Any):
    documented = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert len(documented) == len(set(documented))
    public = {f"{package.__name__}.{name}" for name in package.__all__ if not name.startswith("__")}
    assert public - set(documented) == set()


def test_every_metric_and_every_reason_is_explained():
    """In the tables of docs/operating.md."""
    first_cells = re.findall(r"^\| `([\w.]+)` \|", (DOCS / "operating.md").read_text(), re.MULTILINE)
    assert {metric.name for metric in METRICS} - set(first_cells) == set()
    assert {reason.value for reason in Reason} - set(first_cells) == set()


SCRIPTS = [*ROOT.glob("integrations/*/agent.py"), *ROOT.glob("integrations/*/realtime.py")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_guides_script_sends_its_spans_before_it_ends(path: Path):
    """Python 3.12.0 to 3.12.2 lose them otherwise."""
    text = path.read_text()
    # Phoenix's guide is traced by OpenTelemetry alone.
    assert re.search(r"^mlflow\.flush_trace_async_logging\(\)$|^provider\.shutdown\(\)$", text, re.MULTILINE)


def test_the_readmes_script_does_so_too():
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    scripts = [block for block in blocks if "set_tracking_uri" in block]
    assert scripts
    assert all(script.rstrip().endswith("mlflow.flush_trace_async_logging()") for script in scripts)


def commands() -> list[tuple[str, str]]:
    guides = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("integrations/*/README.md"),
    ]
    found = []
    for guide in guides:
        blocks = re.findall(r"^```sh\n(.*?)^```$", guide.read_text(), re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines() if line.startswith("pip install")]
        found += [(str(guide.relative_to(ROOT)), line) for line in lines]
    return found


@pytest.mark.parametrize(("guide", "command"), commands())
def test_what_a_guide_installs_can_be_installed_from_a_checkout(guide: str, command: str):
    """The package is not on an index yet: each command takes it from the checkout that the guide is in."""
    path = ROOT / guide
    folder = ROOT if "in a checkout" in path.read_text() else path.parent
    places = re.findall(r"'?(\.[./]*)(?:\[[\w,-]+\])?'?(?= |$)", command)
    assert any((folder / place / "pyproject.toml").is_file() for place in places), command


def test_the_published_command_is_announced_as_such():
    """In the README, with the words that say from when on it works."""
    text = " ".join((ROOT / "README.md").read_text().split())
    assert re.search(r"[Oo]nce the first release is on PyPI[^.]*`pip install 'agent-gateway-client\[openai\]'`", text)


def test_the_readme_says_what_its_command_needs():
    """``.[openai]``, which it installs first, does not bring the command's packages."""
    section = (ROOT / "README.md").read_text().split("\n## The trace\n")[1].split("\n## ")[0]
    assert "pip install '.[cli]'" in section.split("```")[0]
