"""The results of a benchmark: rows for the table, and the marks that it should reach."""

import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure import Samples, added, estimate, median, paired, ratio

SHOWN = ("mlflow", "openai", "httpx", "opentelemetry-sdk", "langchain-core", "litellm")


@dataclass
class Row:
    """One measured case: a value with its 95 % confidence interval, and its ratio to another case."""

    group: str
    case: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    ratio_of: str | None = None


@dataclass
class Mark:
    """A limit, and the measured value."""

    text: str
    value: float
    limit: float
    unit: str = "x"
    at_least: bool = False
    ok: bool = False

    def __post_init__(self) -> None:
        self.ok = self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Report:
    """Collects rows and marks; a note reports what was left out, and why."""

    rows: list[Row] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, group: str, case: str, value: float, unit: str, **more: Any) -> Row:
        self.rows.append(Row(group, case, value, unit, **more))
        return self.rows[-1]

    def added(self, group: str, samples: Samples, cases: Iterable[str], floor: str = "floor") -> dict[str, Row]:
        """Add a row per case: microseconds more than the bare case, and the ratio to the floor's."""
        found = {}
        for case in cases:
            value, low, high = (1e6 * number for number in estimate(added(case), samples))
            times, times_low, times_high = estimate(ratio(added(case), added(floor)), samples)
            found[case] = self.add(
                group,
                case,
                value,
                "µs",
                low=low,
                high=high,
                ratio=times,
                ratio_low=times_low,
                ratio_high=times_high,
                ratio_of=floor,
            )
        return found

    def compared(self, group: str, samples: Samples, base: str, unit: str) -> None:
        """Add a row per case, with the ratio to one of them, round by round."""
        for case in samples:
            value, low, high = estimate(median(case), samples)
            times, times_low, times_high = estimate(paired(case, base), samples)
            self.add(
                group,
                case,
                value,
                unit,
                low=low,
                high=high,
                ratio=times,
                ratio_low=times_low,
                ratio_high=times_high,
                ratio_of=base,
            )

    def mark(self, text: str, value: float, limit: float, unit: str = "x", *, at_least: bool = False) -> None:
        self.marks.append(Mark(text, value, limit, unit, at_least))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Report":
        found = json.loads(path.read_text())
        marks = [Mark(**mark) for mark in found["marks"]]
        return cls([Row(**row) for row in found["rows"]], marks, found["notes"])


def machine() -> dict[str, str]:
    """Describe the machine and the versions."""
    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = f"{len(names)} x {names[0]}" if names else cpu
    # A higher load than the benchmarks' own two or three processes means that something else was running.
    load = f"{os.getloadavg()[2]:.1f}"
    found = {"machine": cpu, "load of 15 minutes": load, "system": platform.system(), "python": sys.version.split()[0]}
    for name in SHOWN:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
