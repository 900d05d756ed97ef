"""Installing the newest releases that the index has, also where the index does not have all that belongs to them.

An index may have a release without the packages that were released with it: mlflow 3.18.0 asks for exactly that version
of mlflow-skinny and mlflow-tracing, whose files its own wheel holds too. pip would then take the release before, and
tests of the newest would be tests of an old one. So the companions that are missing are taken in the version that the
index has, or left out, and the output says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from described import Environment
from installing import Installer, say

NEVER = "python_version < '3'"
"""A marker for a package that the index does not have at all."""


def install_newest(environment: Environment, installer: Installer) -> None:
    """Install everything that an environment is to hold in the newest releases that go together."""
    packages = dict(environment.newest)
    groups = [word for group in environment.groups for word in ("--group", group)]
    assert environment.extras is not None
    wanted = ["--upgrade", "--no-build-isolation", "--editable", f".[{','.join(environment.extras)}]", *groups]
    wanted += [*environment.requirements, *packages]
    if not installer.uv:
        say("==> Without uv, releases whose companions the index lacks are left out")
        installer.install(environment.folder, wanted)
        return
    versions = {package: newest_version(installer, package, environment) for package in packages}
    relaxed: dict[str, list[str]] = {}
    for package, companions in packages.items():
        if versions[package] and not resolves(installer, environment, package, versions[package], []):
            relaxed[package] = [relax(installer, environment, companion) for companion in companions]
    overrides = [override for companions in relaxed.values() for override in companions]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "overrides.txt"
        file.write_text("\n".join(overrides))
        installer.install(environment.folder, [*(["--override", str(file)] if overrides else []), *wanted])
    # Files of the companions may have been written over those of the release itself.
    there = environment.installed()
    again = [f"{bare(name)}=={versions[name]}" for name in relaxed if there.get(bare(name)) == versions[name]]
    if again:
        reinstalled = [
            word for requirement in again for word in ("--reinstall-package", requirement.partition("==")[0])
        ]
        installer.install(environment.folder, ["--no-deps", *reinstalled, *again])
    for line in report(environment, versions, relaxed):
        say(line)


def bare(package: str) -> str:
    """Return a package's name without its extras."""
    return package.partition("[")[0]


def options(environment: Environment) -> list[str]:
    """Return the options that make uv resolve for an environment."""
    return ["--python", str(environment.python_path)]


def newest_version(installer: Installer, package: str, environment: Environment) -> str:
    """Return the newest release of a package that the index has, whatever that asks for."""
    return installer.resolve([*options(environment), "--no-deps"], [package]).get(bare(package), "")


def resolves(installer: Installer, environment: Environment, package: str, version: str, extra: Sequence[str]) -> bool:
    """Return whether the index has all that a release asks for."""
    return bool(installer.resolve(options(environment), [f"{package}=={version}", *extra]))


def relax(installer: Installer, environment: Environment, companion: str) -> str:
    """Return what to ask for instead of a companion's exact version: any, or none where the index has none."""
    return companion if newest_version(installer, companion, environment) else f"{companion} ; {NEVER}"


def report(environment: Environment, versions: Mapping[str, str], relaxed: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what to say of each package: its version, and why it is not the newest or stands on older companions."""
    lines = []
    there = environment.installed()
    for package, newest in versions.items():
        name = bare(package)
        line = f"==> {name} {there.get(name, 'missing')}"
        if there.get(name) != newest:
            line += f", not {newest}: it does not go with the others"
        if package in relaxed:
            companions = [override.partition(" ;")[0] for override in relaxed[package]]
            having = ", ".join(f"{companion} {there.get(companion, 'none')}" for companion in companions)
            line += f"; the index lacks what it asks for, so it stands on {having}"
        lines.append(line)
    return lines
