"""The workflows on GitHub and .ci/run: they run make targets that there are, on the Pythons that are promised."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z0-9-]+):.*##", MAKEFILE, re.MULTILINE))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def matrix() -> list[dict[str, str]]:
    included: list[dict[str, str]] = read("ci")["jobs"]["make"]["strategy"]["matrix"]["include"]
    return included


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_targets_that_there_are(path):
    """Each `make …` of a workflow is a target of the Makefile."""
    workflow = yaml.safe_load(path.read_text())
    named = {target for step in steps(workflow) for target in re.findall(r"\bmake ([a-z0-9-]+)", step.get("run", ""))}
    assert named <= TARGETS
    assert {entry["target"] for entry in matrix()} <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_by_default(path):
    """What a job may do beyond that it asks for itself; each job has a version of each action."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@\S+", step["uses"]) for step in steps(workflow) if "uses" in step)


def test_ci_runs_every_supported_python():
    """The matrix has the Pythons of the classifiers, and no other."""
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert {entry["python"] for entry in matrix()} == set(promised)


def test_ci_runs_every_target_that_tests():
    """Every target that tests something is in the matrix, except those that repeat others."""
    tests = {target for target in TARGETS if target.startswith("test")} | {"quick", "check", "docs"}
    assert {entry["target"] for entry in matrix()} == tests - {"test-all", "test-main", "test-nightly"}


def test_ci_run_runs_the_same_targets():
    """.ci/run has every target of the matrix; check is there as its parts."""
    script = (ROOT / ".ci" / "run").read_text()
    loops = " ".join(re.findall(r"for name in ([^;]+); do target(?:_if_there_is)? ", script)).split()
    run = {*loops, *re.findall(r"^target ([\w-]+)$", script, re.MULTILINE)}
    run |= {f"test-{name}" for name in run}
    assert {entry["target"] for entry in matrix()} - {"check"} <= run
    assert {"lint", "types"} <= run
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


def test_a_release_is_tested_then_built_then_published():
    """A tag starts it; only the last job may publish, and it has no secret: PyPI trusts the workflow."""
    release = read("release")
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML takes the key "on" for true.
    assert [job.get("needs") for job in release["jobs"].values()] == [None, "test", "build"]
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert release["jobs"]["build"]["permissions"]["attestations"] == "write"
    assert "secrets" not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_every_target_is_documented_and_phony():
    """`make help` shows every target, and a file of that name cannot hide it."""
    phony = MAKEFILE.partition(".PHONY:")[2].partition("\n\n")[0].replace("\\\n", " ").split()
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    assert targets == TARGETS == set(phony)
