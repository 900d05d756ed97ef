"""What importing the package takes over a bare Python, beside what its users import anyway; processor time."""

import statistics
import subprocess
import sys

from benchmarks.report import Report

PROGRAM = """
import sys, time
before = set(sys.modules)
begin = time.process_time()
{code}
print((time.process_time() - begin) * 1e3, len(set(sys.modules) - before))
"""

CASES = {
    "agent_gateway_client": "import agent_gateway_client",
    "wrap_httpx": "from agent_gateway_client import wrap_httpx",
    "OpenTelemetry API": "import opentelemetry.trace, opentelemetry.context",
    "openai": "import openai",
    "wrap_openai, after openai": "import openai\nbefore = set(sys.modules)\nbegin = time.process_time()\n"
    "from agent_gateway_client import wrap_openai",
    "mlflow": "import mlflow",
}
ROUNDS = 7
SLOW = ("openai", "mlflow", "wrap_openai, after openai")


def run(report: Report) -> None:
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in CASES}
    for number in range(ROUNDS):
        for name, code in CASES.items():
            if name in SLOW and number:
                continue
            command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(code=code)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            milliseconds, modules = output.split()
            found[name].append((float(milliseconds), int(modules)))
    for name, values in found.items():
        times = [milliseconds for milliseconds, _ in values]
        report.add("import", name, statistics.median(times), "ms", low=min(times), high=max(times))
        report.add("modules loaded", name, values[0][1], "modules")
    ours = found["agent_gateway_client"]
    report.mark("import agent_gateway_client", statistics.median(value for value, _ in ours), 10, "ms")
    report.mark("import agent_gateway_client", ours[0][1], 10, "modules")
