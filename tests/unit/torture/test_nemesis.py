"""The same seed, the same faults."""

from __future__ import annotations

from itertools import islice

import pytest

from workqueue.cli.torture.nemesis import Fault, Stroke, plan

FAULTS = [
    Fault(name, lambda number, seconds: f"{number} for {seconds}", (1.0, 2.0)) for name in "abcdef"
]


def dealt(seed: int, count: int) -> list[Stroke]:
    return list(islice(plan(FAULTS, seed), count))


def test_a_seed_repeats_itself() -> None:
    assert dealt(7, 50) == dealt(7, 50)
    assert dealt(7, 50) != dealt(8, 50)


def test_each_comes_before_any_comes_again() -> None:
    names = [stroke.fault.name for stroke in dealt(7, 12)]
    assert sorted(names[:6]) == sorted(names[6:]) == list("abcdef")
    assert names[:6] != names[6:]


@pytest.mark.parametrize("seed", range(20))
def test_one_may_be_asked_for_first(seed: int) -> None:
    """In the first deck alone; the others come in the same order as ever."""
    names = [stroke.fault.name for stroke in islice(plan(FAULTS, seed, FAULTS[0]), 12)]
    before = [stroke.fault.name for stroke in dealt(seed, 12)]
    assert names[0] == "a"
    assert [name for name in names if name != "a"] == [name for name in before if name != "a"]
    assert names[6:] == before[6:]


def test_a_fault_is_told_its_victim_and_its_time() -> None:
    [stroke] = dealt(7, 1)
    assert stroke.land() == f"{stroke.victim} for {stroke.seconds}"
    assert 1.0 <= stroke.seconds <= 2.0


def test_no_faults_no_strokes() -> None:
    assert list(plan([], 7)) == []
