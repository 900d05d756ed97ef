"""``python -m benchmarks [PART ...]``: runs the parts in separate processes, and writes their results."""

import argparse
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from benchmarks.report import Report, machine

NEWEST = Path(__file__).parents[1] / ".venv-newest" / "bin" / "python"

PARTS = (
    "client",
    "process_wide",
    "frameworks",
    "peers",
    "importing",
    "asgi",
    "wsgi",
    "first_byte",
    "flat",
    "exporter",
    "placement",
    "relay",
    "litellm_proxy",
    "mlflow_gateway",
)


ON_NEWEST = "mlflow_gateway"
"""The part that also runs in the environment with the newest MLflow, if that is made, at the same time: each takes a
processor, and counts processor time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"one of: {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        report = Report()
        import_module(f"benchmarks.{options.parts[0]}").run(report)
        report.write(options.write)
        return 0
    from benchmarks.show import show

    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory() as directory:
        for part in options.parts or PARTS:
            began = time.monotonic()
            print(f"==> {part}", flush=True)
            reports |= _run(part, Path(directory))
            print(f"    {time.monotonic() - began:.0f} s", flush=True)
    missed = show(reports, machine(), options.output)
    return 1 if missed or not all(report.rows for report in reports.values()) else 0


def _run(part: str, directory: Path) -> dict[str, Report]:
    """Run a part in each environment that it is for, and return its reports by name."""
    pythons = {part: sys.executable}
    if part == ON_NEWEST and NEWEST.exists():
        pythons[f"{part}, newest MLflow"] = str(NEWEST)
    paths = {name: directory / f"{name}.json" for name in pythons}
    commands = [[python, "-m", "benchmarks", part, "--write", str(paths[name])] for name, python in pythons.items()]
    processes = [subprocess.Popen(command) for command in commands]
    # The other parts are still worth running if one fails.
    return {
        name: Report(notes=[f"The part {name} failed; its output is above."]) if process.wait() else Report.read(path)
        for process, (name, path) in zip(processes, paths.items(), strict=True)
    }


if __name__ == "__main__":
    sys.exit(main())
