"""Writes the table in docs/costs.md from the last measurements: ``python docs/costs.py``."""

import json
from pathlib import Path

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results" / "results.json"
BEGIN, END = "<!-- written by docs/costs.py -->", "<!-- end -->"
OTEL = "OpenTelemetry httpx instrumentation"
INLINE = "floor: two OpenTelemetry spans inline"

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
    ("MLflow's gateway, 8 clients", "MLflow gateway, 8 clients", "with the companion",
     (("plain MLflow, without mirrors", "plain MLflow, stores no mirrors"),
      ("MLflow with its own mirror", "MLflow with its own mirror"))),
    ("bytes stored per call", "bytes stored per mirrored call", "with the companion, 1 KB of payload, 2 spans",
     (("MLflow's own mirror", "MLflow with its own mirror, 1 KB of payload, 2 spans"),)),
    ("time until a mirror can be read", "mirror readable after the call's end, PostgreSQL", "median", ()),
)  # fmt: skip
"""The rows: a name, the measurement's group and case, and what it is compared with."""


def table() -> str:
    """Return the table of the most important measurements."""
    parts = json.loads(RESULTS.read_text())["parts"].values()
    measured = {(row["group"], row["case"]): row for part in parts for row in part["rows"]}

    def value(group: str, case: str) -> str:
        row = measured[group, case]
        return f"{float(format(row['value'], '.3g')):,g} {row['unit']}"

    lines = ["| | This package | For comparison |", "|---|---|---|"]
    for name, group, case, others in ROWS:
        beside = "; ".join(f"{value(group, other)}: {title}" for title, other in others)
        lines.append(f"| {name} | {value(group, case)} | {beside} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with the table from the last measurements."""
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


if __name__ == "__main__":
    path = DOCS / "costs.md"
    path.write_text(page(path.read_text()))
