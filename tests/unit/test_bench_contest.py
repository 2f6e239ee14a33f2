"""The bench's own arithmetic: rounds, ratios, goals, the table and the chart."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import chart
from bench.contest import RATE, Contest, Entry, Failed, Figure, Goal, Result, Sample, hold, judge
from bench.report import Results

WAIT = Figure("wait", "ms", more=False)


class Runs:
    """A contestant that gives these rates, round by round."""

    def __init__(self, log: list[str], name: str, *rates: float) -> None:
        self.log, self.name, self.rates = log, name, list(rates)

    def __call__(self) -> Sample:
        self.log.append(self.name)
        rate = self.rates.pop(0)
        if not rate:
            raise Failed("it fell over")
        return {"rate": rate, "wait": 1000 / rate}


def result_of(
    rounds: int, goals: list[Goal], **rates: tuple[float, ...]
) -> tuple[Result, list[str]]:
    log: list[str] = []
    entries = [Entry(name, "as it comes", Runs(log, name, *given)) for name, given in rates.items()]
    contest = Contest("S1", "sent, quorum queue", [RATE, WAIT], entries, goals)
    return hold(contest, "RabbitMQ 4.3.6", rounds, lambda _: None), log


def test_rounds_take_turns() -> None:
    _, log = result_of(3, [], ours=(1, 2, 3), a=(1, 2, 3), b=(1, 2, 3))
    assert log == ["ours", "a", "b", "b", "a", "ours", "ours", "a", "b"]


def test_ratios_are_of_one_round() -> None:
    """A machine that is ten times slower in one round changes nothing."""
    goal = Goal("ours", "rate", 2, ("a", "b"))
    result, _ = result_of(3, [goal], ours=(300, 30, 300), a=(100, 10, 100), b=(50, 5, 50))
    told = judge(result, result.goals[0])
    assert told.reached
    assert told.measured == "3× of a [3–3]"


@pytest.mark.parametrize(("bound", "reached"), [(1.9, True), (2.0, True), (2.1, False)])
def test_a_goal_of_more(bound: float, reached: bool) -> None:
    goal = Goal("ours", "rate", bound, ("a",))
    result, _ = result_of(3, [goal], ours=(100, 200, 300), a=(100, 100, 100))
    assert judge(result, result.goals[0]).reached is reached


@pytest.mark.parametrize(("bound", "reached"), [(0.6, True), (0.5, True), (0.4, False)])
def test_a_goal_of_less(bound: float, reached: bool) -> None:
    """Of the rival who waits least, not of the last."""
    goal = Goal("ours", "wait", bound, ("a", "slow"))
    result, _ = result_of(1, [goal], ours=(200,), a=(100,), slow=(10,))
    assert judge(result, result.goals[0]).reached is reached


def test_a_goal_as_such() -> None:
    result, _ = result_of(3, [Goal("ours", "wait", 5)], ours=(100, 250, 400), a=(1, 1, 1))
    assert judge(result, result.goals[0]).measured == "4 [2.5–10]"


def test_who_fails_is_left_out() -> None:
    goal = Goal("ours", "rate", 1, ("a",))
    result, log = result_of(3, [goal], ours=(2, 2, 2), a=(1, 0, 9))
    assert log.count("a") == 2
    assert result.failures == {"a": "it fell over"}
    assert result.ratios("ours", "a", "rate") == [2]


def test_not_measured_is_no_success() -> None:
    result, _ = result_of(1, [Goal("ours", "rate", 1, ("C",))], ours=(2,), a=(1,))
    assert judge(result, result.goals[0]).reached is None


def test_results_are_kept_and_replaced(tmp_path: Path) -> None:
    goal = Goal("ours", "rate", 3, ("a",), "three times a")
    first, _ = result_of(1, [goal], ours=(200,), a=(100,))
    again, _ = result_of(1, [goal], ours=(500,), a=(100,))
    for result in (first, again):
        results = Results(tmp_path / "results.json")
        results.note_machine({"kombu": "5.7.0"})
        results.keep(result)
    page = (tmp_path / "results.md").read_text()
    assert "| S1 | RabbitMQ 4.3.6 | three times a | 5× of a [5–5] | reached |" in page
    assert "missed" not in page
    assert "kombu 5.7.0" in page
    ET.parse(tmp_path / "results.svg")


def test_the_chart() -> None:
    """Bars by their length, the quickest first, names as they are."""
    result, _ = result_of(1, [], workqueue=(100,), **{"a & b": (400,), "c": (200,)})
    tree = ET.fromstring(chart.draw([result]))
    spaced = "{http://www.w3.org/2000/svg}"
    widths = [float(bar.attrib["width"]) for bar in tree.iter(f"{spaced}rect")]
    assert widths == pytest.approx([480, 240, 120])
    texts = [text.text for text in tree.iter(f"{spaced}text")]
    assert texts.index("a & b") < texts.index("c") < texts.index("workqueue")
