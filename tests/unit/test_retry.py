"""When a failed task comes again."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import stop_after_attempt, stop_after_delay
from tenacity.wait import wait_chain, wait_fixed

from workqueue.errors import ConfigError
from workqueue.message import LONGEST_DELAY
from workqueue.retry import JITTER, RetryPolicy, TaskOptions


def test_five_attempts_by_default() -> None:
    """Four delays, each about twice the one before, and then none."""
    delays = [RetryPolicy().delay(attempt) for attempt in (1, 2, 3, 4)]
    for delay, middle in zip(delays, (1, 2, 4, 8), strict=True):
        assert delay == pytest.approx(middle, rel=JITTER)
    assert RetryPolicy().delay(5) is None
    assert RetryPolicy().delay(500) is None


@given(
    first=st.floats(0, 1000),
    factor=st.floats(1, 1000),
    attempt=st.integers(1, 10_000_000),
    age=st.floats(0, 1e9),
)
def test_a_delay_is_always_a_delay(first: float, factor: float, attempt: int, age: float) -> None:
    """However many attempts there were: a number of seconds, and never more than the longest."""
    longest = min(first * factor, LONGEST_DELAY)
    pause = RetryPolicy(first=first, longest=longest).pause(attempt, age)
    assert math.isfinite(pause)
    assert 0 <= pause <= longest


def test_those_that_failed_together_do_not_come_back_together() -> None:
    """There is chance in it."""
    assert len({RetryPolicy().delay(4) for _ in range(20)}) > 1


def test_strategies_of_tenacity() -> None:
    """In place of the numbers: waiting as they say, stopping as they say."""
    wait = wait_chain(wait_fixed(3), wait_fixed(50))
    policy = RetryPolicy(wait=wait, stop=stop_after_attempt(9) | stop_after_delay(3600))
    assert [policy.delay(attempt) for attempt in (1, 2, 3, 8)] == [3, 50, 50, 50]
    assert policy.delay(9) is None
    assert policy.delay(1, age=3599) == 3
    assert policy.delay(1, age=3601) is None


def test_a_strategy_that_waits_too_long_is_bounded() -> None:
    """No broker of ours keeps a message back for longer."""
    assert RetryPolicy(wait=wait_fixed(1e12)).delay(1) == LONGEST_DELAY
    assert RetryPolicy(wait=wait_fixed(-5)).delay(1) == 0


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"max_attempts": 0}, "max attempts 0"),
        ({"first": -1}, "backoff -1..600 s"),
        ({"first": 10, "longest": 5}, "backoff 10..5 s"),
        ({"longest": LONGEST_DELAY + 1}, "at most 30 days"),
        ({"first": math.nan}, "backoff nan"),
    ],
    ids=str,
)
def test_numbers_that_make_no_sense(numbers: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        RetryPolicy(**numbers)


def test_a_task_changes_what_it_names() -> None:
    """And leaves the rest as the worker has it."""
    usual = RetryPolicy(max_attempts=7, first=2, longest=20)
    assert TaskOptions().policy(usual) is usual
    assert TaskOptions(timeout=3).policy(usual) is usual
    assert TaskOptions(max_attempts=2).policy(usual) == RetryPolicy(2, 2, 20)
    assert TaskOptions(backoff=(1, 5)).policy(usual) == RetryPolicy(7, 1, 5)
    strategies = RetryPolicy(wait=wait_fixed(3), stop=stop_after_attempt(4))
    assert TaskOptions(max_attempts=2).policy(strategies).delay(2) is None
    assert TaskOptions(max_attempts=2).policy(strategies).delay(1) == 3
    assert TaskOptions(backoff=(9, 9)).policy(strategies).delay(4) is None


@pytest.mark.parametrize(
    "options", [{"max_attempts": 0}, {"backoff": (5, 1)}, {"timeout": 0}, {"timeout": math.inf}]
)
def test_a_task_cannot_ask_for_nonsense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TaskOptions(**options)
