"""Tables of results in pytest's summary, for tests that are the cells of a matrix.

``@pytest.mark.table("LangChain", rows="mode", columns="autolog")`` names the test's parameters that say in which row
and column it is; without ``rows``, there is a row per test function. It works in one process and with pytest-xdist.
"""

from collections import Counter

import pytest
from _pytest.terminal import TerminalReporter

RESULTS = {"passed": "ok", "failed": "FAILED", "error": "FAILED", "skipped": "skipped"}


def mark_cells(items: list[pytest.Item]) -> None:
    """Record each test's cell; pytest sends it along with the test's result, also from another process."""
    for item in items:
        mark = item.get_closest_marker("table")
        if mark is not None and isinstance(item, pytest.Function):
            parameters = item.callspec.params
            rows, columns = mark.kwargs.get("rows"), mark.kwargs["columns"]
            row = str(parameters[rows]) if rows else item.originalname.removeprefix("test_").replace("_", " ")
            item.user_properties.append(("cell", [mark.args[0], row, str(parameters[columns])]))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print every table that has at least one result."""
    tables: dict[str, dict[tuple[str, str], str]] = {}
    for outcome, result in RESULTS.items():
        for report in terminalreporter.stats.get(outcome, []):
            for name, cell in getattr(report, "user_properties", []):
                if name == "cell":
                    title, row, column = cell
                    tables.setdefault(title, {})[row, column] = result
    if not tables:
        return
    # Not installed in every environment.
    from rich.console import Console
    from rich.table import Table

    for title, cells in sorted(tables.items()):
        columns = list(dict.fromkeys(column for _, column in sorted(cells)))
        table = Table("", *columns, title=title)
        for row in sorted({row for row, _ in cells}):
            table.add_row(row, *(cells.get((row, column), "") for column in columns))
        console = Console(width=150)
        with console.capture() as capture:
            console.print(table)
        terminalreporter.write(capture.get())
        counts = ", ".join(f"{count} {result}" for result, count in Counter(cells.values()).items())
        terminalreporter.write_line(f"{title}: {len(cells)} cells: {counts}")
