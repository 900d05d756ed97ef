"""What environments.json says of each environment, and the Python to make it with."""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).with_name("environments.json")


class Failed(Exception):
    """Something that the user has to act on. The message says what."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment of this project.

    Attributes:
        about: What is in it, in one line.
        folder: Where it is.
        extras: The extras of this project to install; None where the project itself is not installed.
        groups: The dependency groups of pyproject.toml.
        requirements: What else is installed.
        without: Packages that are not to be there.
        constraints_files: Constraints files by the lowest Python version that each is for.
        prefers_python: The Python to make it with where this machine has it.
        needs_python: The only Python to make it with.
        part_of: An environment in the same folder that holds all of this one.
        adds_to: An environment in the same folder that is made before.
        newest: Packages to have in their newest release, each with the packages that may be missing beside it.
        compiled: Packages whose modules are compiled at once. Processes that start together, as those of the tests do,
            would each compile them.
    """

    name: str
    about: str
    folder: Path
    extras: tuple[str, ...] | None = None
    groups: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    constraints_files: tuple[tuple[str, str], ...] = ()
    prefers_python: str = ""
    needs_python: str = ""
    part_of: str = ""
    adds_to: str = ""
    newest: tuple[tuple[str, tuple[str, ...]], ...] = ()
    compiled: tuple[str, ...] = ()

    @property
    def python_path(self) -> Path:
        """The environment's own Python."""
        return self.folder / "bin" / "python"

    def version(self) -> str:
        """Return the version of the environment's Python, such as ``3.11.7``, or "" if it is not made."""
        try:
            configuration = (self.folder / "pyvenv.cfg").read_text()
        except OSError:
            return ""
        found = re.search(r"^version(?:_info)?\s*=\s*([\d.]+)", configuration, re.MULTILINE)
        return found[1].rstrip(".") if found else ""

    def installed(self) -> dict[str, str]:
        """Return the versions of what is installed, by name."""
        folders = self.folder.glob("lib/python*/site-packages/*.dist-info")
        found = (re.fullmatch(r"(.+?)-([^-]+)\.dist-info", folder.name) for folder in folders)
        return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found if match}

    def constraints(self, version: str) -> Path | None:
        """Return the constraints file for a Python version, or None if there is none."""
        fitting = [file for lowest, file in self.constraints_files if as_numbers(lowest) <= as_numbers(version)]
        return DATA.parent / fitting[-1] if fitting else None

    def find_python(self) -> str:
        """Return the Python to make the environment with.

        Raises:
            Failed: The environment needs a Python that this machine does not have.
        """
        if wanted := self.needs_python or self.prefers_python:
            for candidate in candidates(wanted):
                if version_of(candidate).startswith(wanted + "."):
                    return candidate
            if self.needs_python:
                raise Failed(
                    f"{self.name} needs Python {wanted}; put python{wanted} on the PATH, or: pyenv install {wanted}"
                )
        return sys.executable


@dataclass(frozen=True)
class Run:
    """A run of tests.

    Attributes:
        environment: The environment to run them in.
        tests: Names of sets of tests, and patterns of paths; one that begins with an exclamation mark excludes.
        needs: Environments whose programs the tests start.
        pytest: More arguments for pytest.
        variables: Environment variables for the tests.
        processes: Number of processes per processor; two for tests that wait for servers for much of their time.
    """

    environment: str
    tests: Sequence[str]
    needs: Sequence[str] = ()
    pytest: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1

    def arguments(self) -> list[str]:
        """Return what to give to pytest; paths are relative to the root."""
        return [*matching(self.tests, TESTS), *self.pytest]


def as_numbers(version: str) -> tuple[int, ...]:
    """Return a version as something that can be compared."""
    return tuple(int(number) for number in version.split("."))


def candidates(version: str) -> list[str]:
    """Return the interpreters that may be of a version, the running one first."""
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    installed = sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python"), reverse=True)
    return [sys.executable, f"python{version}", *installed]


def version_of(python: str) -> str:
    """Return the version of an interpreter, or "" if it cannot be run."""
    program = "import platform; print(platform.python_version())"
    try:
        return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def matching(tests: Sequence[str], sets: Mapping[str, Sequence[str]]) -> list[str]:
    """Return pytest's arguments for sets and patterns, of which a later one has the last word on a path."""
    patterns = [pattern for item in tests for pattern in sets.get(item, [item])]
    included: dict[str, None] = {}
    left_out: dict[str, None] = {}
    for pattern in patterns:
        to, of = (left_out, included) if pattern.startswith("!") else (included, left_out)
        for path in expanded(pattern.removeprefix("!")):
            to[path] = None
            of.pop(path, None)
    # A file that is left out may be in a folder that is not.
    inside = [path for path in left_out if any(path.startswith(folder + "/") for folder in included)]
    return [*included, *(f"--ignore={path}" for path in inside)]


def expanded(pattern: str) -> list[str]:
    """Return the paths that a pattern matches, relative to the root."""
    return sorted(glob.glob(pattern, root_dir=ROOT))


def read(data: dict[str, Any]) -> dict[str, Environment]:
    """Return the environments that the data describes, by name."""
    entries: dict[str, dict[str, Any]] = data["environments"]
    merged = {name: {**entries.get(entry.get("like", ""), {}), **entry} for name, entry in entries.items()}
    return {name: described(name, **entry) for name, entry in merged.items()}


def described(
    name: str, *, folder: str, constraints: dict[str, str] | None = None, like: str = "", **entry: Any
) -> Environment:
    """Return an entry as an environment; a key that is not known is an error."""
    lists: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    lists["newest"] = tuple((package, tuple(companions)) for package, companions in entry.get("newest", {}).items())
    files = tuple((constraints or {}).items())
    return Environment(name=name, folder=ROOT / folder, constraints_files=files, **lists)


_data = json.loads(DATA.read_text())
TESTS: dict[str, list[str]] = _data["tests"]
DESCRIBED = read(_data)
RUNS = {name: Run(**entry) for name, entry in _data["runs"].items()}
