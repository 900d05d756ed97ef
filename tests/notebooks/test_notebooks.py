"""The tutorials run from top to bottom, and show what their committed outputs show."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from agent_gateway_client.demo.gateway import DemoGateway
from tests.support import warm_python
from tests.support.notebooks import FOLDER, NOTEBOOKS, execute, kinds

pytestmark = pytest.mark.e2e


LIKE_A_USERS = ("01-first-trace-with-openai", "03-litellm")
"""Run by the real Python; 03 is about a library that the warm one has imported."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoGateway]:
    """One gateway for all tutorials; each would start one by itself."""
    with DemoGateway(directory=tmp_path_factory.mktemp("notebooks")) as gateway:
        yield gateway


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_the_same(path: Path, demo: DemoGateway):
    """Cell by cell the same kinds of outputs, with the same spans in what is drawn."""
    python = sys.executable if path.stem in LIKE_A_USERS else warm_python.interpreter()
    assert kinds(execute(path, demo, python)) == kinds(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_reads_well_without_running(path: Path):
    """Every cell was run in order and none failed; no warning, and nothing of the machine that ran it."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert "stderr" not in {output.get("name") for output in outputs}
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"/(?:tmp|home|root|work|usr)/|site-packages|file://|command not found|Traceback", text) == []
    assert set(re.findall(r"127\.0\.0\.1:(\d+)", text)) <= {"5000", "8000"}
    assert notebook.cells[0].source.startswith("# ")


def test_each_is_in_the_list_and_leads_to_the_next():
    listed = re.findall(r"\(([\w-]+\.ipynb)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    names = [path.name for path in NOTEBOOKS]
    assert listed == names
    for path, following in zip(NOTEBOOKS, names[1:], strict=False):
        assert f"({following})" in path.read_text(encoding="utf-8")
