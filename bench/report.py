"""The results: kept as JSON, and told as a table and a chart."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import chart
from bench.contest import Result, judge


class Results:
    """A file of results, in which a row that is measured anew replaces what was there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.machine: dict[str, Any] = stored.get("machine", {})
        self.contests = [Result(**fields) for fields in stored.get("contests", [])]

    def note_machine(self, versions: dict[str, str]) -> None:
        self.machine = {
            "cores": len(os.sched_getaffinity(0)),
            "system": f"{platform.system()} {platform.release().split('-')[0]}",
            "python": platform.python_version(),
            "versions": versions,
        }

    def keep(self, result: Result) -> None:
        key = (result.row, result.title, result.server)
        others = [one for one in self.contests if (one.row, one.title, one.server) != key]
        self.contests = sorted([*others, result], key=lambda one: (int(one.row[1:]), one.server))
        self.write()

    def write(self) -> list[Path]:
        """All three files, after each contest: a run broken off has not been for nothing."""
        stored = {"machine": self.machine, "contests": [asdict(one) for one in self.contests]}
        self.path.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
        table, picture = self.path.with_suffix(".md"), self.path.with_suffix(".svg")
        table.write_text("\n".join(self.page()) + "\n")
        picture.write_text(chart.draw(self.contests))
        return [self.path, table, picture]

    # -- the page

    def page(self) -> Iterator[str]:
        versions = ", ".join(
            f"{name} {number}" for name, number in self.machine["versions"].items()
        )
        yield "# How fast"
        yield ""
        yield "Made by `./dev nox -s bench`. Each round runs every contestant once, in turns; told"
        yield "are medians over the rounds, with the least and the most in brackets, and ratios are"
        yield "taken round by round. Client and broker share the machine: trust the ratios. Where"
        yield "the load average is far above the cores, others were at work on it: trust them less."
        yield ""
        yield (
            f"Machine: {self.machine['cores']} shared cores, {self.machine['system']},"
            f" Python {self.machine['python']}. {versions}."
        )
        yield ""
        yield "## Goals"
        yield ""
        yield "| row | on | goal | measured | |"
        yield "|---|---|---|---|---|"
        for result in self.contests:
            for goal in result.goals:
                told = judge(result, goal)
                verdict = {True: "reached", False: "**missed**", None: "–"}[told.reached]
                cells = (result.row, result.server, told.text, told.measured, verdict)
                yield f"| {' | '.join(cells)} |"
        for result in self.contests:
            yield ""
            yield from section(result)


def section(result: Result) -> Iterator[str]:
    rounds = max(len(samples) for samples in result.samples.values())
    yield f"## {result.row} {result.title}"
    yield ""
    load = f", load average {result.load:.0f}" if result.load else ""
    yield f"{result.server}, {rounds} rounds, {result.at} UTC{load}."
    yield ""
    ours = next(iter(result.samples))
    main = result.figures[0]["name"]
    heads = [f"{figure['unit']}" for figure in result.figures]
    yield f"| | set up | {' | '.join(heads)} | {ours} to it |"
    yield f"|---|---|{'---:|' * len(heads)}---:|"
    for name, settings in result.settings.items():
        if name in result.failures:
            yield f"| {name} | {settings} | failed: {result.failures[name]} |"
            continue
        cells = [spread(result.values(name, figure["name"])) for figure in result.figures]
        ratios = [] if name == ours else result.ratios(ours, name, main)
        yield f"| {name} | {settings} | {' | '.join(cells)} | {spread(ratios, '×')} |"


def spread(values: list[float], unit: str = "") -> str:
    """The median, and from where to where."""
    if not values:
        return ""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{figures(middle)}{unit} [{figures(least)}–{figures(most)}]"


def figures(value: float) -> str:
    """Three that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
