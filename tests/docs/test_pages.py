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
from tests.support.gateway_columns import UNTOLD

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_versions_are_up_to_date():
    """After a change of the constraints files: ``python docs/versions.py``."""
    script: dict[str, Any] = runpy.run_path(str(DOCS / "versions.py"))
    text = (DOCS / "versions.md").read_text()
    assert script["page"](text) == text
    assert script["table"]().count("\n|") > 5


@pytest.mark.parametrize("name", ["docs/costs.md", "README.md", "benchmarks/README.md"])
def test_the_figures_are_those_of_the_last_measurements(name: str):
    """After ``make bench``: ``python docs/costs.py``."""
    script: dict[str, Any] = runpy.run_path(str(DOCS / "costs.py"))
    text = (ROOT / name).read_text()
    assert script["page"](ROOT / name) == text
    assert text.count(script["BEGIN"]) == text.count(script["END"]) == 1


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


def test_the_relays_page_says_what_litellm_does_not():
    """Each thing that the table of scenarios makes an exception for is in docs/relay.md."""
    page = (DOCS / "relay.md").read_text()
    for untold in UNTOLD.values():
        for sentence in untold.values():
            assert f"| {sentence} |" in page


def test_the_readme_says_what_its_command_needs():
    """``.[openai]``, which it installs first, does not bring the command's packages."""
    section = (ROOT / "README.md").read_text().split("\n## The trace\n")[1].split("\n## ")[0]
    assert "pip install '.[cli]'" in section.split("```")[0]
