"""How many deliveries a worker holds: decided by what its tasks took."""

from __future__ import annotations

import pytest

from workqueue.prefetch import (
    CHANGES_APART,
    FIRST_PROOF,
    HELD_WORK,
    MOST_BYTES,
    MOST_HELD,
    STEP,
    Pace,
)


def after(pace: Pace, *seconds: float, size: int = 100, now: float = 0.0) -> Pace:
    for taken in seconds:
        pace.measure(taken, size, now)
    return pace


def settled(pace: Pace, seconds: float, *, size: int = 100, now: float = 0.0) -> int:
    """What is held once tasks have long been like that."""
    for _ in range(40):
        after(pace, *[seconds] * max(pace.held, FIRST_PROOF), size=size, now=now)
        pace.changed(now)
    return pace.held


@pytest.mark.parametrize("slots", [1, 4])
def test_at_first_no_more_than_runs(slots: int) -> None:
    assert Pace(slots).held == slots
    assert not Pace(slots).changed(0.0)


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("seconds", [0.001, 0.005, 0.02])
def test_a_moments_work_besides_what_runs(slots: int, seconds: float) -> None:
    """No more of it, and at least half."""
    unbegun = (settled(Pace(slots), seconds) - slots) / slots * seconds
    assert HELD_WORK / 2 <= unbegun <= HELD_WORK * 1.01


@pytest.mark.parametrize("seconds", [0.06, 0.5, 3600.0])
def test_long_tasks_come_one_by_one(seconds: float) -> None:
    assert settled(Pace(3), seconds) == 3


def test_long_and_short_tasks_in_turn_come_one_by_one() -> None:
    pace = Pace(1)
    for turn in range(200):
        after(pace, 0.5 if turn % 2 == 0 else 0.0, now=turn * 0.25)
        assert not pace.changed(turn * 0.25)
    assert pace.held == 1


def test_no_more_than_fits() -> None:
    """Neither in number nor in bytes."""
    assert settled(Pace(1), 0.0) == MOST_HELD + 1
    assert settled(Pace(8), 0.0) <= MOST_HELD + 8
    large = 1_000_000
    assert settled(Pace(1), 0.0, size=large) <= 1 + MOST_BYTES // large


def test_it_grows_in_steps_each_of_which_is_earned() -> None:
    pace = Pace(1)
    after(pace, *[0.0] * (FIRST_PROOF - 1))
    assert not pace.changed(0.0)
    after(pace, 0.0)
    assert pace.changed(0.0)
    assert pace.held == STEP
    after(pace, *[0.0] * (STEP - 1))
    assert not pace.changed(0.0)
    after(pace, 0.0)
    assert pace.changed(0.0)
    assert pace.held == STEP * STEP


def test_it_goes_down_when_tasks_become_longer() -> None:
    """And not for a little."""
    pace = Pace(1)
    held = settled(pace, 0.001)
    after(pace, *[0.0015] * 1000)
    assert not pace.changed(0.0)
    after(pace, *[0.01] * 1000)
    assert pace.changed(0.0)
    assert pace.held <= 6 < held


def test_after_a_long_task_not_soon_again() -> None:
    pace = Pace(1)
    settled(pace, 0.0)
    pace.shrink()
    assert pace.held == 1
    after(pace, 0.5, now=10.0)
    after(pace, *[0.0] * 1000, now=10.0)
    assert not pace.changed(10.0 + CHANGES_APART * 0.9)
    assert pace.changed(10.0 + CHANGES_APART)
    assert pace.held > 1


def test_what_only_seemed_long_is_no_reason_to_wait() -> None:
    """The machine was busy: the tasks themselves were short."""
    pace = Pace(1)
    settled(pace, 0.0)
    pace.shrink()
    after(pace, *[0.0] * FIRST_PROOF)
    assert pace.changed(0.0)
