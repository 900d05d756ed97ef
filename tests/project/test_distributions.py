"""The sdist and the wheel: what is in them, and what PyPI shows of the README."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = "https://example.org/owner/project"
RUN_FROM_THE_SDIST = ["tests/project/test_environments.py", "tests/project/test_workflows.py"]


def build(root: Path, folder: Path, *options: str, page: str = "") -> Path:
    """Build a distribution and return where it is."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder), *options]
    subprocess.run(command, cwd=root, check=True, capture_output=True, env={**os.environ, "PROJECT_URL": page})
    [built] = folder.iterdir()
    return built


def metadata(wheel: Path) -> email.message.Message:
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(archive.read(name))


def readme(described: email.message.Message) -> str:
    payload = described.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode()


def relative_targets(markdown: str) -> list[str]:
    """Return where links and images lead that do not begin with a scheme."""
    targets = re.findall(r"\]\(([^)]+)\)", markdown) + re.findall(r'(?:src|srcset|href)="([^"]+)"', markdown)
    return [target for target in targets if not re.match(r"https?:", target)]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of a release, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, folder / "built", "--target", "sdist", page=PAGE)) as archive:
        archive.extractall(folder, filter="data")
    shutil.rmtree(folder / "built")
    [unpacked] = folder.iterdir()
    return unpacked


def test_tests_pass_from_the_sdist(sdist):
    """The sdist has what its tests read; files that read much of the repository pass from it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *RUN_FROM_THE_SDIST]
    environment = {**os.environ, "PYTHONPATH": str(sdist), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, cwd=sdist, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert " passed" in ended.stdout


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a checkout")
def test_the_sdist_has_every_file_of_the_repository(sdist):
    """And no other but the metadata: no cache and no environment of whoever builds it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tracked = {path for path in listed.split("\0") if (ROOT / path).is_file()}
    there = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    assert tracked <= there
    assert not {path for path in there if re.search(r"__pycache__|\.venv|\.pyc$|mlflow\.db", path)}


@pytest.mark.parametrize("source", ["repository", "sdist"])
def test_pypi_shows_links_that_lead_somewhere(source, sdist, tmp_path):
    """Every link and image of the README is absolute, also in a wheel that is built from the sdist of the release."""
    root, page = (ROOT, PAGE) if source == "repository" else (sdist, "")
    wheel = build(root, tmp_path, "--target", "wheel", page=page)
    described = metadata(wheel)
    text = readme(described)
    assert relative_targets(text) == []
    assert f"]({PAGE}/raw/v{described['Version']}/docs/joined-trace.png)" in text
    links = dict(link.split(", ") for link in described.get_all("Project-URL"))
    assert links["Homepage"] == PAGE
    assert set(links) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}


def test_files_that_the_readme_links_to_are_there():
    """What the release's README makes absolute exists in the repository."""
    targets = relative_targets((ROOT / "README.md").read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target.partition("#")[0]).exists()] == []


def test_a_build_that_knows_no_page_has_no_links_that_lead_nowhere(tmp_path):
    """Built elsewhere than in the release workflow, the README keeps its words and loses what is relative."""
    described = metadata(build(ROOT, tmp_path, "--target", "wheel"))
    text = readme(described)
    assert relative_targets(text) == []
    assert described.get_all("Project-URL") is None
    assert "[conformance tests](https://github.com/w3c/trace-context)" in text
    assert '| LiteLLM | `instrument_litellm("http://localhost:5000/gateway")` | litellm |' in text


def test_the_readme_is_whole(tmp_path):
    """Nothing but links and images is changed."""
    text = readme(metadata(build(ROOT, tmp_path, "--target", "wheel", page=PAGE)))
    back = text.replace(f"{PAGE}/", "")
    back = re.sub(r"(?:raw|blob)/v[\d.]+/", "", back)
    assert back.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
