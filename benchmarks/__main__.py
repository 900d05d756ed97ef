"""``python -m benchmarks [PART ...]``: runs the parts in separate processes, and writes their results."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.report import Report, machine

NEWEST = Path(__file__).parents[1] / ".venv-newest" / "bin" / "python"

GROUPS = (
    ("client",),
    ("process_wide",),
    ("frameworks",),
    ("importing",),
    ("asgi",),
    ("wsgi",),
    ("first_byte",),
    # Each is compared with itself, needs one processor at most, and waits a lot.
    ("flat", "placement"),
    ("exporter",),
    # Each counts the processor time of processes, which are compared with one another.
    ("relay", "peers"),
    ("litellm_proxy",),
    ("mlflow_gateway",),
)
"""The parts. Those of a group run at the same time, the groups one after the other."""

PARTS = [part for group in GROUPS for part in group]

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
        for group in GROUPS:
            parts = [part for part in group if part in (options.parts or PARTS)]
            if not parts:
                continue
            began = time.monotonic()
            print(f"==> {', '.join(parts)}", flush=True)
            reports |= _run(parts, Path(directory))
            print(f"    {time.monotonic() - began:.0f} s", flush=True)
    missed = show(reports, machine(), options.output)
    return 1 if missed or not all(report.rows for report in reports.values()) else 0


def _run(parts: Sequence[str], directory: Path) -> dict[str, Report]:
    """Run parts at the same time, each in every environment that it is for, and return their reports by name."""
    pythons = {part: (part, sys.executable) for part in parts}
    if ON_NEWEST in parts and NEWEST.exists():
        pythons[f"{ON_NEWEST}, newest MLflow"] = ON_NEWEST, str(NEWEST)
    paths = {name: directory / f"{name}.json" for name in pythons}
    processes = [
        subprocess.Popen([python, "-m", "benchmarks", part, "--write", str(paths[name])])
        for name, (part, python) in pythons.items()
    ]
    # The other parts are still worth running if one fails.
    return {
        name: Report(notes=[f"The part {name} failed; its output is above."]) if process.wait() else Report.read(path)
        for process, (name, path) in zip(processes, paths.items(), strict=True)
    }


if __name__ == "__main__":
    sys.exit(main())
