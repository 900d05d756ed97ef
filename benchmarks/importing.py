"""The time to import the package in a bare Python, and after its users' usual imports; processor time."""

import resource
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.report import Report

PROGRAM = """
import sys, time
{before}
loaded = set(sys.modules)
begin = time.process_time()
{code}
print((time.process_time() - begin) * 1e3, *sorted(set(sys.modules) - loaded))
"""

OURS = "agent_gateway_client"
WRAP_OPENAI = "wrap_openai, after openai"
OTEL_API = "import opentelemetry.trace, opentelemetry.context"

CASES = {
    OURS: ("", "import agent_gateway_client"),
    "wrap_httpx": ("", "from agent_gateway_client import wrap_httpx"),
    "OpenTelemetry API": ("", OTEL_API),
    "openai": ("", "import openai"),
    WRAP_OPENAI: ("import openai", "from agent_gateway_client import wrap_openai"),
    "mlflow": ("", "import mlflow"),
}
"""Imports before the clock runs, and the measured import."""

ROUNDS = 3
COMMAND_ROUNDS = 9
SLOW = ("openai", "mlflow", WRAP_OPENAI)


def run(report: Report) -> None:
    found: dict[str, list[tuple[float, list[str]]]] = {name: [] for name in CASES}
    for number in range(ROUNDS):
        for name, (before, code) in CASES.items():
            if name not in SLOW or not number:
                found[name].append(_imported(before, code))
    for name, values in found.items():
        times = [milliseconds for milliseconds, _ in values]
        report.add("import", name, statistics.median(times), "ms", low=min(times), high=max(times))
        report.add("modules loaded", name, len(values[0][1]), "modules")
    times = [milliseconds for milliseconds, _ in found[OURS]]
    report.mark(f"import {OURS}", statistics.median(times), 1, "ms")
    report.mark(f"import {OURS}", len(found[OURS][0][1]), 3, "modules")
    command_line(report)
    _, modules = _imported(f"import openai\n{OTEL_API}", CASES[WRAP_OPENAI][1])
    others = [name for name in modules if name.partition(".")[0] != OURS]
    report.mark("import wrap_openai, beside openai, OpenTelemetry's API and its own", len(others), 0, "modules")


def command_line(report: Report) -> None:
    """``agent-gateway --help``, in milliseconds more than a Python that does nothing."""
    program = Path(sys.executable).with_name("agent-gateway")
    commands = {"python -c pass": [sys.executable, "-c", "pass"], "agent-gateway --help": [program, "--help"]}
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(COMMAND_ROUNDS):
        for name, command in commands.items():
            begin = _seconds_of_children()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found[name].append(1e3 * (_seconds_of_children() - begin))
    medians = {name: statistics.median(times) for name, times in found.items()}
    for name, times in found.items():
        report.add("command line", name, medians[name], "ms", low=min(times), high=max(times))
    bare, shown = medians.values()
    report.mark("agent-gateway --help, more than a bare Python", shown - bare, 150, "ms")


def _seconds_of_children() -> float:
    """Return the processor time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _imported(before: str, code: str) -> tuple[float, list[str]]:
    """Return the milliseconds that code takes after other code, and the modules that it loads."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(before=before, code=code)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    milliseconds, *modules = output.split()
    return float(milliseconds), modules
