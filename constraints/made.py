"""Making and removing virtual environments, and knowing which are made."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from described import DESCRIBED, ROOT, Environment, Failed, version_of
from installing import Installer, say
from newest import install_newest

TOOLS = ["pip", "hatchling", "editables"]
"""What installs this project: a pip that knows dependency groups, and the build backend."""


def marker(environment: Environment) -> Path:
    """Return the file that says that an environment is made, and of what."""
    return environment.folder / f".made-{environment.name}"


def fingerprint(environment: Environment, constrained: bool = True) -> str:
    """Return what changes when the environment has to be made again."""
    constraints = environment.constraints(environment.version() or "3.10") if constrained else None
    parts = [
        repr(environment),
        constraints.read_text() if constraints else "",
        (ROOT / "pyproject.toml").read_text(),
        # The newest releases may be others tomorrow.
        str(datetime.date.today()) if environment.newest else "",
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def is_made(environment: Environment, constrained: bool = True) -> bool:
    """Return whether all that the environment is to hold is installed."""
    if environment.part_of and is_made(DESCRIBED[environment.part_of], constrained):
        return True
    if environment.adds_to and not is_made(DESCRIBED[environment.adds_to], constrained):
        return False
    try:
        return marker(environment).read_text() == fingerprint(environment, constrained)
    except OSError:
        return False


def make(environment: Environment, installer: Installer, *, constrained: bool = True) -> None:
    """Make an environment if it is not made yet. Where uv fails, pip has a try.

    Raises:
        Failed: It cannot be made; the message says what to do.
    """
    if environment.adds_to:
        make(DESCRIBED[environment.adds_to], installer, constrained=constrained)
    with one_process_at_a_time(environment.folder):
        if is_made(environment, constrained):
            return
        started = time.monotonic()
        try:
            build(environment, installer, constrained)
        except Failed as error:
            if not installer.uv:
                raise
            say(f"==> {error}\n==> Trying again with pip instead of uv")
            remove(environment)
            build(environment, Installer(), constrained)
        compile_modules(environment)
        marker(environment).write_text(fingerprint(environment, constrained))
        say(f"==> {environment.folder.name} is ready after {time.monotonic() - started:.0f} s")


def build(environment: Environment, installer: Installer, constrained: bool) -> None:
    """Create the environment where there is none, and install what it is to hold."""
    if not version_of(str(environment.python_path)):
        python = environment.find_python()
        say(f"==> Creating {environment.folder.name} with Python {version_of(python)}: {environment.about}")
        remove(environment)
        installer.create(environment.folder, python)
    constraints = environment.constraints(environment.version()) if constrained else None
    installer.install(environment.folder, ["--upgrade", *TOOLS], constraints)
    if environment.newest:
        install_newest(environment, installer)
    else:
        installer.install(environment.folder, ["--no-build-isolation", *wanted(environment)], constraints)
    if unwanted := set(environment.without) & set(environment.installed()):
        raise Failed(
            f"{environment.folder.name} must not have {', '.join(sorted(unwanted))}, which something asks for now"
        )


def compile_modules(environment: Environment) -> None:
    """Compile the packages for which the environment asks, without their tests; a module that cannot be is left out."""
    packages = [str(path) for name in environment.compiled for path in environment.folder.glob(f"lib/*/*/{name}")]
    if packages:
        command = [str(environment.python_path), "-m", "compileall", "-qq", "-j", "0", "-x", "/tests?/", *packages]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wanted(environment: Environment) -> list[str]:
    """Return what is installed, as pip's arguments."""
    project = [] if environment.extras is None else ["--editable", f".[{','.join(environment.extras)}]"]
    groups = [word for group in environment.groups for word in ("--group", group)]
    return [*project, *environment.requirements, *groups]


def remove(environment: Environment) -> None:
    """Remove an environment and what shares its folder."""
    shutil.rmtree(environment.folder, ignore_errors=True)


@contextlib.contextmanager
def one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process makes the same environment: make --jobs starts this script several times."""
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"agent-gateway-client-{os.getuid()}-{name}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
