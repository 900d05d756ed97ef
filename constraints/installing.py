"""Installing packages with uv where it can be had, and with pip where it cannot.

uv does not read pip's configuration, so what pip is told of indexes and certificates is passed on to it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from described import DATA, ROOT, Failed

UV_FOLDER = ROOT / ".venv-uv"
UV_VERSION = DATA.with_name("uv.txt")
AS_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "no-index": "UV_NO_INDEX",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "proxy": "ALL_PROXY",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
}
"""pip's settings, and the variables that tell uv the same."""
COMMAS = {"UV_FIND_LINKS"}
PRINTING = threading.Lock()


def say(text: str) -> None:
    """Print a line at once, whole, whatever other threads print."""
    with PRINTING:
        print(text, flush=True)


def parse_pip_settings(listed: str) -> dict[str, str]:
    """Return pip's settings as ``pip config list`` prints them.

    The command line's environment wins over the section ``install``, which wins over ``global``.
    """
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for key, value in re.findall(rf"^{section}\.([\w-]+)=(.*)$", listed, re.MULTILINE):
            settings[key] = str(ast.literal_eval(value))
    return settings


def uv_variables(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that make uv take packages from where pip does. Those that the user has set stay."""
    variables = {}
    for key, variable in AS_UV.items():
        words = settings.get(key, "").split()
        if words and variable not in environ:
            variables[variable] = ("," if variable in COMMAS else " ").join(words)
    if "UV_INDEX" in variables and "UV_INDEX_STRATEGY" not in environ:
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip takes the best release of any index.
    return variables


@dataclass(frozen=True)
class Installer:
    """Installs into virtual environments.

    Attributes:
        uv: Where uv is, or "" to use pip.
        variables: What the environment of uv is, beside this process's own.
        constraints: The constraints that the machine's configuration has for everything.
    """

    uv: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    constraints: Sequence[str] = ()

    @classmethod
    def find(cls) -> Installer:
        """Return one with uv, the user's or one that pip installs; with pip alone where WITHOUT_UV is set."""
        uv = "" if os.environ.get("WITHOUT_UV") else shutil.which("uv") or installed_uv()
        if not uv:
            return cls()
        listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
        settings = parse_pip_settings(listed.stdout)
        return cls(uv, uv_variables(settings, os.environ), settings.get("constraint", "").split())

    def create(self, folder: Path, python: str) -> None:
        """Create an empty virtual environment."""
        if self.uv:
            self._run(folder, [self.uv, "venv", "--quiet", "--allow-existing", "--python", python, str(folder)])
        else:
            create_venv(folder, python)

    def install(self, folder: Path, arguments: Sequence[str], constraints: Path | None = None) -> None:
        """Install what pip's arguments name; those that uv has too may be used.

        Modules are not compiled: compiling all that MLflow brings takes longer than installing it.
        """
        python = str(folder / "bin" / "python")
        if self.uv:
            command = [self.uv, "pip", "install", "--python", python]
        else:
            command = [python, "-m", "pip", "install", "--no-compile", "--disable-pip-version-check", "--no-input"]
        of_machine = self.constraints if self.uv else []  # pip reads them itself.
        limits = [word for file in (constraints, *of_machine) if file for word in ("--constraint", str(file))]
        self._run(folder, [*command, *limits, *arguments])

    def resolve(self, arguments: Sequence[str], requirements: Sequence[str]) -> dict[str, str]:
        """Return the versions that uv would install, by name, or nothing if there are none that go together."""
        command = [self.uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", *arguments, "-"]
        limits = [word for file in self.constraints for word in ("--constraint", file)]
        result = subprocess.run(
            [*command, *limits],
            input="\n".join(requirements),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **self.variables},
        )
        lines = result.stdout.splitlines() if result.returncode == 0 else []
        return dict(line.split("==") for line in lines if "==" in line)

    def _run(self, folder: Path, command: Sequence[str]) -> None:
        """Run a command and show what it does. All that it printed is shown where it fails."""
        printed = []
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **self.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                printed.append(line)
                if shown := progress(line):
                    say(f"    {folder.name}: {shown}")
        if process.returncode:
            say("".join(printed[-80:]))
            raise Failed(f"Could not install into {folder.name}; see above. The index is the one of: pip config list")


def progress(line: str) -> str:
    """Return what a line of uv's or pip's output tells of the progress, or ""."""
    if line.startswith("Collecting "):
        return line.split()[1]
    if line.startswith("Installing collected packages"):
        return "unpacking ..."
    shown = (
        "Resolved ",
        "Prepared ",
        "Installed ",
        "Uninstalled ",
        "Downloading ",
        "Building ",
        "warning: ",
        "WARNING: ",
    )
    return line.strip() if line.strip().startswith(shown) and "is ignored: it is neither" not in line else ""


def create_venv(folder: Path, python: str) -> None:
    """Create a virtual environment with the standard library's module."""
    result = subprocess.run([python, "-m", "venv", str(folder)], capture_output=True, text=True)
    if result.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise Failed(f"{python} could not create {folder.name}:\n{(result.stdout + result.stderr).strip()}")


def installed_uv() -> str:
    """Return the uv that pip has installed into an environment for it, or "" if it cannot be had."""
    uv = UV_FOLDER / "bin" / "uv"
    if uv.is_file():
        return str(uv)
    say("==> Installing uv, which installs the rest in less time")
    try:
        Installer().create(UV_FOLDER, sys.executable)
        Installer().install(UV_FOLDER, ["--quiet", "uv"], UV_VERSION)
    except Failed as error:
        say(f"==> {error}\n==> uv cannot be had, so pip does all")
        shutil.rmtree(UV_FOLDER, ignore_errors=True)
        return ""
    return str(uv)
