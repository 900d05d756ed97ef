"""The environments as they are described: constraints, tests, extras and groups that are there."""

import json
import re
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from described import DATA, DESCRIBED, ROOT, RUNS, TESTS, Environment, Failed, Run, candidates, matching
from made import compile_modules
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

DISTRIBUTION = "agent-gateway-client"
CLIENT_REQUIREMENTS = ["mlflow-tracing", "openai", "opentelemetry-api"]
CONSTRAINTS = sorted(DATA.parent.glob("*.txt"))
SUPPORTED = ["3.10.0", "3.11.7", "3.12.1", "3.13.0", "3.14.0"]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def pins(path: Path) -> dict[str, str]:
    lines = (line.split("==") for line in path.read_text().splitlines())
    return {canonicalize_name(name): version for name, version in lines}


def requirements() -> dict[str, Requirement]:
    """Return what this distribution requires, with all its extras, by name."""
    found = (Requirement(text) for text in metadata.requires(DISTRIBUTION) or [])
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def table(name: str) -> set[str]:
    """Return the keys of a table of pyproject.toml, which Python 3.10 has no parser for."""
    text = PYPROJECT.partition(f"[{name}]\n")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = ", text, re.MULTILINE))


def test_what_is_compiled_is_installed():
    """Nothing else is a slip of the pen; the tests run in the main environment."""
    assert [name for name in DESCRIBED["main"].compiled if not find_spec(name)] == []


def test_packages_are_compiled_without_their_tests(tmp_path):
    """A module that is not Python for this version stays as it is."""
    package = tmp_path / "lib" / "python3" / "site-packages" / "package"
    for path, text in [("module.py", "x = 1"), ("wrong.py", "x ="), ("tests/test_module.py", "x = 1")]:
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(text)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    compile_modules(Environment("one", "a test's", tmp_path, compiled=("package", "not_there")))
    assert [path.name.partition(".")[0] for path in package.rglob("*.pyc")] == ["module"]


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.name)
def test_constraints_are_names_and_versions(path):
    """A constraints file pins versions and says nothing of where they come from: no host, path, hash or option."""
    lines = path.read_text().splitlines()
    assert lines
    line_form = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!+_]*")
    assert [line for line in lines if not line_form.fullmatch(line)] == []
    assert len(pins(path)) == len(lines)


def test_every_constraints_file_is_used():
    """There is no file that nothing reads, and none is missing. uv.txt is for the installer itself."""
    named = {file for environment in DESCRIBED.values() for _, file in environment.constraints_files}
    assert {path.name for path in CONSTRAINTS} == named | {"uv.txt"}


@pytest.mark.parametrize("environment", DESCRIBED.values(), ids=DESCRIBED)
def test_every_environment_has_constraints_except_the_newest(environment):
    """On each Python that is supported and that it may be made with, known-good versions are installed."""
    for version in SUPPORTED:
        if version.startswith(environment.needs_python):
            assert (environment.constraints(version) is None) == bool(environment.newest)


@pytest.mark.parametrize("environment", DESCRIBED.values(), ids=DESCRIBED)
def test_an_environment_names_what_there_is(environment):
    """Its extras and groups are in pyproject.toml, and the environments that it stands on share its folder."""
    assert set(environment.extras or ()) <= table("project.optional-dependencies")
    assert set(environment.groups) <= table("dependency-groups")
    for other in {environment.part_of, environment.adds_to} - {""}:
        assert DESCRIBED[other].folder == environment.folder


def test_environments_do_not_share_a_folder_by_accident():
    apart = [
        environment.folder for environment in DESCRIBED.values() if not (environment.part_of or environment.adds_to)
    ]
    assert len(set(apart)) == len(apart)
    assert all(folder.parent == ROOT and folder.name.startswith(".venv") for folder in apart)


def test_a_key_that_is_not_known_is_an_error():
    """A misspelt key is not passed over."""
    from described import read

    with pytest.raises(TypeError, match="prefer_python"):
        read({"environments": {"one": {"about": "", "folder": ".venv-one", "prefer_python": "3.11"}}})


@pytest.mark.parametrize("name", RUNS)
def test_every_run_has_its_tests(name):
    """Its environments exist, and no pattern of its tests has come to match nothing."""
    run = RUNS[name]
    assert {run.environment, *run.needs} <= set(DESCRIBED)
    patterns = {pattern for item in run.tests for pattern in TESTS.get(item, [item])}
    missing = [pattern for pattern in patterns if not list(ROOT.glob(pattern.removeprefix("!")))]
    assert missing == []
    assert run.arguments()


def test_the_main_environment_runs_every_test():
    """Folders with servers come first: their files take minutes, and the short ones fill the gaps at the end."""
    paths = [ROOT / argument for argument in RUNS["main"].arguments()]
    files = (ROOT / "tests").rglob("test_*.py")
    assert [file for file in files if not {file, *file.parents} & set(paths)] == []


def test_every_set_of_tests_is_used():
    assert set(TESTS) <= {item for run in RUNS.values() for item in run.tests}


def test_no_test_is_skipped_everywhere():
    """The main environment, which runs this too, has every package that tests are skipped without."""
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    needed = {name for source in sources for name in re.findall(r'importorskip\("(\w+)', source)}
    # tests/server/reading/test_bodies.py
    needed |= {"brotli", "zstandard"}
    assert [name for name in sorted(needed) if find_spec(name) is None] == []


def test_the_data_is_read_by_the_oldest_python():
    """It is JSON, since Python 3.10 has no parser for TOML; nothing in it is named twice."""

    def once(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    json.loads(DATA.read_text(), object_pairs_hook=once)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["tests/w3c"], ["tests/w3c"]),
        (["tests/w3c", "!tests/w3c/run.py"], ["tests/w3c", "--ignore=tests/w3c/run.py"]),
        (["tests/w3c/*.py", "!tests/w3c/run.py"], ["tests/w3c/service.py", "tests/w3c/test_service.py"]),
        (["set", "tests/w3c/run.py"], ["tests/w3c", "tests/w3c/run.py"]),
        (["tests/nothing*"], []),
    ],
)
def test_the_last_pattern_has_the_last_word(patterns, expected):
    """A path that is left out is ignored in its folder, and a later pattern takes it in again."""
    assert matching(patterns, {"set": ["tests/w3c", "!tests/w3c/run.py"]}) == expected


def test_a_run_passes_its_arguments_on():
    assert Run("main", ["tests/w3c"], pytest=["-k", "not slow"]).arguments() == ["tests/w3c", "-k", "not slow"]


def test_the_python_that_runs_the_script_is_the_one_to_use():
    """An environment that asks for none gets the Python of the script; so does one whose wish is not there."""
    assert Environment("any", "", ROOT / ".venv-any").find_python() == sys.executable
    assert Environment("any", "", ROOT / ".venv-any", prefers_python="9.9").find_python() == sys.executable


def test_a_python_that_is_needed_and_not_there_is_an_error():
    """The message names the version and how to get it."""
    with pytest.raises(Failed, match=r"old needs Python 9\.9; put python9\.9 on the PATH, or: pyenv install 9\.9"):
        Environment("old", "", ROOT / ".venv-old", needs_python="9.9").find_python()


def test_a_python_is_looked_for_in_pyenv(tmp_path, monkeypatch):
    """The newest one of the version there comes first."""
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    for version in ("3.12.1", "3.12.4", "3.13.0"):
        (tmp_path / "versions" / version / "bin").mkdir(parents=True)
        (tmp_path / "versions" / version / "bin" / "python").touch()
    found = [str(Path(path).relative_to(tmp_path)) for path in candidates("3.12")[2:]]
    assert found == ["versions/3.12.4/bin/python", "versions/3.12.1/bin/python"]


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("lowest.txt", [*CLIENT_REQUIREMENTS, "langchain-core"]),
        ("lowest-server.txt", ["litellm", "mlflow"]),
        ("lowest-proxy.txt", ["litellm[proxy]", "mlflow"]),
    ],
)
def test_the_lowest_versions_that_are_promised_are_those_that_are_tested(file, names):
    """These files pin the lower bound of each requirement."""
    lowest = pins(DATA.with_name(file))
    required = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    for name in names:
        bounds = [
            Version(item.version)
            for requirement in required
            if requirement.name + "".join(f"[{extra}]" for extra in requirement.extras) == name
            for item in requirement.specifier
            if item.operator == ">="
        ]
        assert Version(lowest[name.partition("[")[0]]) == min(bounds), name


def test_the_openai_3_environment_has_no_httpx():
    """It has an openai 3 that stands on httpx2 alone, and is not made if something brings httpx."""
    pinned = pins(DATA.with_name("openai3.txt"))
    assert Version(pinned["openai"]).major == 3
    assert "httpx2" in pinned
    assert "httpx" not in pinned
    assert DESCRIBED["openai3"].without == ("httpx",)


@pytest.mark.parametrize(
    "path",
    # In these are programs, and not this package.
    [path for path in CONSTRAINTS if path.name not in ("backends.txt", "docs.txt", "uv.txt")],
    ids=lambda path: path.name,
)
def test_a_known_good_version_is_one_that_is_allowed(path):
    """What a constraints file pins lies in the ranges that pyproject.toml gives for the client."""
    pinned = pins(path)
    for name in CLIENT_REQUIREMENTS:
        assert pinned[name] in requirements()[name].specifier, name
