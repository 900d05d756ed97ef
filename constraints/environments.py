"""Make, test, freeze and remove the project's virtual environments, which environments.json describes.

    python3 constraints/environments.py list
    python3 constraints/environments.py make quick openai3      # side by side
    python3 constraints/environments.py test quick -k redirect  # make it if need be, then run its tests

The Python that runs this script is the one that environments are made with, unless they ask for another. Only the
standard library is needed. Packages come from where pip takes them; uv installs them where it can be had.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - a newcomer's Python may be older
    sys.exit("Python 3.10 or newer is needed; name one: make PYTHON=python3.12")

import argparse
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

from described import DESCRIBED, ROOT, RUNS, Environment, Failed
from installing import Installer
from made import is_made, make, remove


def list_environments() -> None:
    """Print the environments, and which ones exist."""
    for environment in DESCRIBED.values():
        state = "made" if is_made(environment) else ""
        print(f"{environment.name:14} {environment.folder.name:20} {state:5} {environment.about}")


def make_all(names: list[str], *, constrained: bool = True) -> None:
    """Make environments concurrently; those that share a folder or extend another one come after it."""
    wanted = [DESCRIBED[name] for name in names]
    missing = [environment for environment in wanted if not is_made(environment, constrained)]
    if not missing:
        return
    installer = Installer.find()
    folders: dict[str, list[Environment]] = {}
    for environment in missing:
        folders.setdefault(environment.folder.name, []).append(environment)

    def make_in_one_folder(environments: list[Environment]) -> str:
        try:
            for environment in environments:
                make(environment, installer, constrained=constrained)
        except Failed as error:
            return f"==> {error}"
        return ""

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        failures = [failure for failure in pool.map(make_in_one_folder, folders.values()) if failure]
    if failures:
        sys.exit("\n".join(failures))


def test(name: str, arguments: list[str]) -> int:
    """Run tests and return pytest's exit status.

    A file's tests stay together, as they share their servers. The order of the sets has the long files first.
    """
    run = RUNS[name]
    environment = DESCRIBED[run.environment]
    make_all([environment.name, *run.needs])
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spread = [f"--numprocesses={run.processes * processes}", "--dist=loadfile", "--no-loadscope-reorder"]
    print(f"==> Testing in {environment.folder.name}, Python {environment.version()}: {environment.about}", flush=True)
    command = [str(environment.python_path), "-m", "pytest", *spread, *run.arguments(), *arguments]
    # Servers import some thousand modules each: compiled once and kept, they take a third of the time.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    status = subprocess.run(command, cwd=ROOT, env={**inherited, **run.variables}).returncode
    print(f"==> pytest in {environment.folder.name}: exit status {status}", flush=True)
    return status


def run(name: str, command: list[str]) -> int:
    """Run a program of an environment and return its exit status."""
    make_all([name])
    folder = DESCRIBED[name].folder
    return subprocess.run([folder / "bin" / command[0], *command[1:]], cwd=ROOT).returncode


def freeze(name: str) -> None:
    """Write the installed packages of an environment to its constraints file."""
    environment = DESCRIBED[name]
    constraints = environment.constraints(environment.version())
    if constraints is None:
        sys.exit(f"==> {name} has no constraints file")
    options = ["--all", "--exclude", "setuptools", "--exclude-editable"]
    frozen = subprocess.run(
        [environment.python_path, "-m", "pip", "freeze", *options], capture_output=True, text=True, check=True
    )
    constraints.write_text(frozen.stdout)
    print(f"==> {constraints.relative_to(ROOT)}: {len(frozen.stdout.splitlines())} versions")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show the environments")
    for name, description in [
        ("make", "make environments that are not made yet, side by side"),
        ("remove", "remove environments"),
        ("freeze", "write what is installed to the constraints files"),
        ("python", "show the Python that an environment is made with"),
    ]:
        command = commands.add_parser(name, help=description)
        command.add_argument("names", nargs="+", choices=DESCRIBED, metavar="NAME")
        if name == "make":
            command.add_argument(
                "--unconstrained", action="store_true", help="with the newest versions that go together"
            )
    for name, known, description in [
        ("test", list(RUNS), "make an environment and run its tests"),
        ("run", list(DESCRIBED), "make an environment and run one of its programs"),
    ]:
        command = commands.add_parser(name, help=description)
        command.add_argument("name", choices=known, metavar="NAME")
        command.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the command and return the exit status."""
    options = parse()
    if options.command == "list":
        list_environments()
    elif options.command == "make":
        make_all(options.names, constrained=not options.unconstrained)
    elif options.command == "test":
        return test(options.name, options.arguments)
    elif options.command == "run":
        return run(options.name, options.arguments)
    else:
        for name in options.names:
            if options.command == "remove":
                remove(DESCRIBED[name])
            elif options.command == "freeze":
                freeze(name)
            else:
                print(DESCRIBED[name].find_python())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failed:
        sys.exit(f"==> {failed}")
    except KeyboardInterrupt:
        sys.exit(130)
