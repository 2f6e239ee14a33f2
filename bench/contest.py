"""What is compared with what, the measuring in turns, and what came out of it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workqueue import WorkqueueError

Sample = dict[str, float]
"""What one run of one contestant gave: figures by name, such as rate and cpu_us."""

Say = Callable[[str], None]


class Failed(Exception):
    """A contestant did not do what it was asked: what it said last."""


@dataclass(frozen=True)
class Figure:
    """One thing that is measured. `more` says which way is better."""

    name: str
    unit: str
    more: bool = True


RATE = Figure("rate", "/s")
CPU = Figure("cpu_us", "µs of client CPU", more=False)


@dataclass(frozen=True)
class Entry:
    """A contestant: its name, how it is set up, and how to run it once."""

    name: str
    settings: str
    run: Callable[[], Sample]


@dataclass(frozen=True)
class Goal:
    """What `ours` has to reach in a figure: so many times the best of `against`, or without these
    a bound as such. Where less is better it has to stay below."""

    ours: str
    figure: str
    bound: float
    against: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Contest:
    """Contestants that do the same work. `row` is S1 to S10."""

    row: str
    title: str
    figures: Sequence[Figure]
    entries: Sequence[Entry]
    goals: Sequence[Goal]


@dataclass
class Result:
    """All samples of a contest: the n-th of each contestant is of the n-th round."""

    row: str
    title: str
    server: str
    figures: list[dict[str, Any]]
    goals: list[dict[str, Any]]
    settings: dict[str, str]
    samples: dict[str, list[Sample | None]]
    failures: dict[str, str] = field(default_factory=dict)
    at: str = ""
    load: float = 0.0
    """The machine's load average meanwhile: far above the cores, others were at work on it."""

    def values(self, name: str, figure: str) -> list[float]:
        return [sample[figure] for sample in self.samples[name] if sample and figure in sample]

    def median(self, name: str, figure: str) -> float | None:
        values = self.values(name, figure)
        return statistics.median(values) if values else None

    def ratios(self, ours: str, other: str, figure: str) -> list[float]:
        """Ours to theirs, round by round: what disturbs one round disturbs both."""
        return [
            mine[figure] / theirs[figure]
            for mine, theirs in zip(self.samples[ours], self.samples[other], strict=True)
            if mine and theirs and theirs.get(figure) and figure in mine
        ]

    def more_is_better(self, figure: str) -> bool:
        return next(bool(one["more"]) for one in self.figures if one["name"] == figure)


@dataclass(frozen=True)
class Judgement:
    """A goal beside what was measured: `reached` is None if nothing was."""

    text: str
    measured: str
    reached: bool | None


def hold(contest: Contest, server: str, rounds: int, say: Say) -> Result:
    """Run every contestant once a round, each round in the reverse order of the last.

    One that fails is left out from then on, and why is kept.
    """
    result = Result(
        row=contest.row,
        title=contest.title,
        server=server,
        figures=[vars(figure) for figure in contest.figures],
        goals=[vars(goal) for goal in contest.goals],
        settings={entry.name: entry.settings for entry in contest.entries},
        samples={entry.name: [] for entry in contest.entries},
        at=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    )
    say(f"{contest.row} {contest.title}, on {server}")
    for number in range(rounds):
        entries = list(contest.entries)
        if number % 2:
            entries.reverse()
        for entry in entries:
            result.samples[entry.name].append(attempt(entry, result, say))
    result.load = round(os.getloadavg()[0], 1)
    for entry in contest.entries:
        say(f"    {entry.name:<28} {', '.join(spoken(result, entry.name))}")
    return result


def attempt(entry: Entry, result: Result, say: Say) -> Sample | None:
    if entry.name in result.failures:
        return None
    try:
        return entry.run()
    except (Failed, WorkqueueError) as error:
        result.failures[entry.name] = str(error)
        say(f"    {entry.name} failed, and is left out: {error}")
        return None


def spoken(result: Result, name: str) -> list[str]:
    told = []
    for figure in result.figures:
        median = result.median(name, figure["name"])
        if median is not None:
            told.append(f"{median:,.4g} {figure['unit']}")
    return told


def judge(result: Result, goal: dict[str, Any]) -> Judgement:
    """The median of what was measured, against the bound."""
    ours, figure, bound = goal["ours"], goal["figure"], goal["bound"]
    more = result.more_is_better(figure)
    if goal["against"]:
        rival = best(result, goal["against"], figure)
        values = result.ratios(ours, rival, figure) if rival else []
        unit, beside = "×", f" of {rival}"
    else:
        values = result.values(ours, figure)
        unit, beside = "", ""
    sign = "≥" if more else "≤"
    text = goal["text"] or f"{ours}: {figure} {sign} {bound:g}{unit}"
    if not values:
        return Judgement(text, "not measured", None)
    median = statistics.median(values)
    measured = f"{median:.3g}{unit}{beside} [{min(values):.3g}–{max(values):.3g}]"
    return Judgement(text, measured, median >= bound if more else median <= bound)


def best(result: Result, names: Sequence[str], figure: str) -> str | None:
    """Whose median is best."""
    there = [name for name in names if name in result.samples and result.values(name, figure)]
    if not there:
        return None
    pick = max if result.more_is_better(figure) else min
    return pick(there, key=lambda name: result.median(name, figure) or 0.0)
