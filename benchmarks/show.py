"""The results as a table in the terminal, as JSON for tools, and as a picture."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.report import Report, Row

BARS = {
    "Added to one request (httpx)": "one request, httpx",
    "Added to one call (OpenAI's SDK)": "one call, OpenAI's SDK",
    "Added to one request of an ASGI gateway": "one request of an ASGI gateway",
    "MLflow gateway, 8 clients, in a second of its processor time": f"MLflow {version('mlflow')} gateway, 8 clients",
}
"""Titles of the picture's parts, and the groups of rows in them."""


def show(reports: dict[str, Report], machine: dict[str, str], output: Path) -> int:
    """Print and write everything; return 0 if each mark was reached, else 1."""
    rows = [row for report in reports.values() for row in report.rows]
    marks = [mark for report in reports.values() for mark in report.marks]
    output.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine, "parts": {name: asdict(report) for name, report in reports.items()}}
    (output / "results.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    console = Console(record=True, width=130)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    console.print(_rows(rows))
    table = Table("mark", "measured", "limit", "", title="Marks")
    for mark in marks:
        sign = "≥" if mark.at_least else "≤"
        reached = "[green]yes" if mark.ok else "[red]no"
        table.add_row(mark.text, f"{mark.value:.3g} {mark.unit}", f"{sign} {mark.limit:.3g} {mark.unit}", reached)
    console.print(table)
    for report in reports.values():
        for note in report.notes:
            console.print(f"Note: {note}")
    (output / "results.txt").write_text(console.export_text(clear=False))
    _plot(rows, machine, output / "results.svg")
    console.print(f"Written: {output}/results.json, results.txt, results.svg")
    return 0 if all(mark.ok for mark in marks) else 1


def _rows(rows: list[Row]) -> Table:
    table = Table("what", "case", "value", "95 % interval", "ratio", title="Measured")
    for number, row in enumerate(rows):
        is_new = not number or rows[number - 1].group != row.group
        interval = "" if row.low is None else f"{row.low:.4g} - {row.high:.4g}"
        times = "" if row.ratio is None else f"{row.ratio:.2f}"
        if row.ratio_low is not None:
            times += f" ({row.ratio_low:.2f} - {row.ratio_high:.2f})"
        value = f"{row.value:.4g} {row.unit}"
        table.add_row(row.group if is_new else "", row.case, value, interval, times)
    return table


def _plot(rows: list[Row], machine: dict[str, str], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    groups = {title: [row for row in rows if row.group == group] for title, group in BARS.items()}
    groups = {title: found for title, found in groups.items() if found}
    if not groups:
        return
    heights = [len(found) for found in groups.values()]
    figure, axes = pyplot.subplots(
        len(groups), 1, figsize=(9, 1.2 * len(groups) + 0.36 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for axis, (title, found) in zip(axes[:, 0], groups.items(), strict=True):
        shown = [row for row in reversed(found) if not row.case.startswith("(")]
        values = [row.value for row in shown]
        # An interval of the resampled median need not contain the median of all.
        below = [max(0.0, row.value - row.low) if row.low is not None else 0 for row in shown]
        above = [max(0.0, row.high - row.value) if row.high is not None else 0 for row in shown]
        colours = ["#2a7f62" if row.case.startswith(("ours", "with the companion")) else "#9aa5b1" for row in shown]
        bars = axis.barh([row.case for row in shown], values, xerr=[below, above], color=colours, ecolor="#555")
        # The title has the unit of the count per second.
        labels = [f"{row.value:.3g} {row.unit.partition(' of ')[0]}" for row in shown]
        axis.bar_label(bars, labels, padding=6, fontsize=8)
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.2)
        axis.tick_params(labelsize=8)
    figure.text(0.01, 0.003, ", ".join(f"{name} {value}" for name, value in machine.items()), fontsize=6)
    figure.tight_layout(rect=(0, 0.015, 1, 1))
    figure.savefig(path, metadata={"Date": None})
