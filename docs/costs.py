"""Writes what docs/costs.md and the READMEs say of the last measurements: ``python docs/costs.py``."""

import json
import textwrap
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
RESULTS = ROOT / "benchmarks" / "results" / "results.json"
BEGIN, END = "<!-- written by docs/costs.py -->", "<!-- end -->"
OTEL = "OpenTelemetry httpx instrumentation"
INLINE = "floor: two OpenTelemetry spans inline"
MLFLOW = f"MLflow {json.loads(RESULTS.read_text())['machine']['mlflow']}"
GATEWAY = f"{MLFLOW} gateway, 8 clients"
CLIENTS = ("1 client", "8 clients", "32 clients")
STORED = f"bytes stored per mirrored call, {MLFLOW}"
READABLE = f"mirror readable after the call's end, {MLFLOW}, PostgreSQL"

ROWS = (
    ("a request to a gateway", "one request, httpx", "ours", (("a hand-written hook", "floor"), (OTEL, OTEL))),
    ("a request to any other host", "one request, httpx", "ours, to another host", ()),
    ("a call in LangChain", "one call, LangChain", "ours", ((OTEL, OTEL),)),
    ("a call in LiteLLM", "one call, LiteLLM", "ours", ((OTEL, OTEL),)),
    ("`import agent_gateway_client`", "import", "agent_gateway_client", ()),
    ("`wrap_openai`, after `import openai`", "import", "wrap_openai, after openai", (("`import openai`", "openai"),)),
    ("a mirrored request at an ASGI gateway", "one request of an ASGI gateway", "ours, traced",
     (("two OpenTelemetry spans created inline", INLINE),)),
    ("an untraced request at an ASGI gateway", "one request of an ASGI gateway", "ours, not traced", ()),
    ("a chunk of a stream", "one chunk of a stream", "ours", ()),
    ("the first byte of a stream", "time to the first byte", "ours",
     (("two OpenTelemetry spans created inline", INLINE),)),
    ("memory after 200,000 mirrors", "memory of the process", "after 200,000 mirrors",
     (("after 20,000", "after 20,000 mirrors"),)),
    ("MLflow's gateway, 8 clients", GATEWAY, "with the companion",
     (("plain MLflow, without mirrors", "plain MLflow, stores no mirrors"),
      ("MLflow with its own mirror", "MLflow with its own mirror"))),
    ("bytes stored per call", STORED, "with the companion, 1 KB of payload, 2 spans",
     (("MLflow's own mirror", "MLflow with its own mirror, 1 KB of payload, 2 spans"),)),
    ("time until a mirror can be read", READABLE, "median", ()),
)  # fmt: skip
"""The rows: a name, the measurement's group and case, and what it is compared with."""


def parts() -> list[dict[str, Any]]:
    """Return the parts of the last measurements."""
    return list(json.loads(RESULTS.read_text())["parts"].values())


def measured(group: str, case: str) -> dict[str, Any]:
    """Return a row of the last measurements."""
    (row,) = (row for part in parts() for row in part["rows"] if (row["group"], row["case"]) == (group, case))
    return row


def value(group: str, case: str) -> str:
    """Return a measured value in three digits, with its unit."""
    row = measured(group, case)
    return f"{float(format(row['value'], '.3g')):,g} {row['unit']}"


def table() -> str:
    """Return the table of the most important measurements."""
    lines = ["| | This package | For comparison |", "|---|---|---|"]
    for name, group, case, others in ROWS:
        beside = "; ".join(f"{value(group, other)}: {title}" for title, other in others)
        lines.append(f"| {name} | {value(group, case)} | {beside} |")
    return "\n".join(lines)


def sentence() -> str:
    """Return the README's sentence about costs."""
    request = measured("one request, httpx", "ours")
    # The least of three: single ones vary by a third.
    gateways = [measured(f"{MLFLOW} gateway, {clients}", "with the companion") for clients in CLIENTS]
    least = min(gateway["ratio"] for gateway in gateways)
    size = measured(STORED, "with the companion, 1 KB of payload, 2 spans")
    text = (
        f"**Cost:** {request['value']:.0f} µs per request in the agent, {request['ratio']:.2f} of what a hand-written "
        f"hook takes. In a second of processor time, an MLflow gateway serves at least {least:.2f} of the calls "
        f"that it serves without the companion. A call takes {size['value'] / 1000:.1f} KB of storage "
        "([measurements](docs/costs.md))."
    )
    return textwrap.fill(text, 120)


def targets() -> str:
    """Return how many targets were reached, and a list of the others."""
    marks = [mark for part in parts() for mark in part["marks"]]
    missed = [
        f"- {mark['text']}: {mark['value']:.3g} {mark['unit']} ({'≥' if mark['at_least'] else '≤'} {mark['limit']:.3g})"
        for mark in marks
        if not mark["ok"]
    ]
    reached = f"{len(marks) - len(missed)} of {len(marks)} targets are reached"
    return f"{reached}. The others:\n\n" + "\n".join(missed) if missed else f"{reached}."


WRITTEN = {
    DOCS / "costs.md": table,
    ROOT / "README.md": sentence,
    ROOT / "benchmarks" / "README.md": targets,
}
"""The pages, and the functions that return what is between the two comments."""


def page(path: Path) -> str:
    """Return a page with the last measurements."""
    head, _, rest = path.read_text().partition(BEGIN)
    return f"{head}{BEGIN}\n\n{WRITTEN[path]()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for path in WRITTEN:
        path.write_text(page(path))
