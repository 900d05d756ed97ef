"""Writes the table in docs/versions.md from the constraints files: ``python docs/versions.py``."""

from pathlib import Path

DOCS = Path(__file__).parent
PACKAGES = ("mlflow", "mlflow-tracing", "openai", "langchain-core", "litellm")
TESTED = {
    "main": "everything, with real servers",
    "main-py310": "everything, with real servers, on Python 3.10",
    "openai3": "the client, without httpx",
    "lowest": "the client and LangChain",
    "lowest-server": "LiteLLM and MLflow's gateway",
    "lowest-proxy": "LiteLLM Proxy",
    "autogen": "AutoGen's guide",
    "crewai": "CrewAI's guide",
    "agents": "guides of frameworks with the client alone",
}
"""What is tested with the versions of each constraints file, by its name."""

BEGIN, END = "<!-- written by docs/versions.py -->", "<!-- end -->"


def files() -> dict[str, Path]:
    """Return the constraints files of the environments that tests run in, by name."""
    return {name: DOCS.parent / "constraints" / f"{name}.txt" for name in TESTED}


def table() -> str:
    """Return the table: a row for each set of versions that the tests run with."""
    lines = ["| Tested | " + " | ".join(PACKAGES) + " |", "|---" * (len(PACKAGES) + 1) + "|"]
    for name, path in files().items():
        pins = dict(line.split("==") for line in path.read_text().splitlines() if "==" in line)
        versions = [pins.get(package, "") for package in PACKAGES]
        lines.append(f"| {TESTED[name]} | " + " | ".join(versions) + " |")
    return "\n".join(lines)


def page(text: str) -> str:
    """Return the page with the current table."""
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


if __name__ == "__main__":
    path = DOCS / "versions.md"
    path.write_text(page(path.read_text()))
