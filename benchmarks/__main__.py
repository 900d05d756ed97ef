"""``python -m benchmarks [PART ...]``: runs the parts in separate processes, and writes their results."""

import argparse
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from benchmarks.report import Report, machine

PARTS = (
    "client",
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

    reports = {}
    with tempfile.TemporaryDirectory() as directory:
        for part in options.parts or PARTS:
            began = time.monotonic()
            print(f"==> {part}", flush=True)
            path = Path(directory) / f"{part}.json"
            done = subprocess.run([sys.executable, "-m", "benchmarks", part, "--write", str(path)], check=False)
            # The other parts are still worth running.
            failed = Report(notes=[f"The part {part} failed; its output is above."])
            reports[part] = failed if done.returncode else Report.read(path)
            print(f"    {time.monotonic() - began:.0f} s", flush=True)
    missed = show(reports, machine(), options.output)
    return 1 if missed or not all(report.rows for report in reports.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
