"""When a failed task comes again."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import stop_after_attempt, stop_after_delay
from tenacity.wait import wait_chain, wait_fixed

from workqueue.errors import ConfigError
from workqueue.message import EARLIEST, LONGEST_DELAY, SKEW, Delivery, Message, seconds_since
from workqueue.retry import JITTER, MOST_PAUSES, RetryPolicy, TaskOptions
from workqueue.runners.runner import Ending, Verdict
from workqueue.transport import Reject, Retry
from workqueue.worker import judge


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


# -- the time of sending is the sender's word --------------------------------------------------

FORGED = [None, 0.0, -1e300, 1.0, 1e11, 1.8e12, 2.0**64, math.inf, -math.inf, math.nan]
"""None, the usual 0, times to come, milliseconds, and what is none."""


@pytest.mark.parametrize("sent_at", FORGED)
def test_a_forged_time_of_sending(sent_at: float | None) -> None:
    """Makes a task neither run for ever nor end at once, where the policy goes by time alone."""
    policy = RetryPolicy(wait=wait_fixed(60), stop=stop_after_delay(600))
    message = Message(body=b"", sent_at=sent_at)
    attempt = 1
    while attempt < 100:
        delivery = Delivery(message=message, queue="q", attempt=attempt)
        match judge(Ending(delivery, Verdict.FAILED, "no"), policy):
            case Reject():
                break
            case Retry(_, _, delay, _):
                assert delay == 60
        attempt += 1
    assert attempt == 11


def test_a_true_time_of_sending_counts() -> None:
    """Waiting for a worker is part of it."""
    policy = RetryPolicy(wait=wait_fixed(60), stop=stop_after_delay(600))
    for age, outcome in ((590, Retry), (610, Reject)):
        message = Message(body=b"", sent_at=time.time() - age)
        ending = Ending(Delivery(message=message, queue="q"), Verdict.FAILED, "no")
        assert isinstance(judge(ending, policy), outcome)


def test_many_attempts_are_added_up_quickly() -> None:
    """And as many as anybody may claim."""
    policy = RetryPolicy(wait=wait_fixed(10), stop=stop_after_delay(3600))
    assert policy.least_age(MOST_PAUSES) == 10 * (MOST_PAUSES - 1)
    assert policy.least_age(999_999) == 10 * 999_998
    assert RetryPolicy().least_age(999_999) == 0.0  # which stops by their number


@pytest.mark.parametrize("sent_at", FORGED)
def test_how_long_ago_cannot_be(sent_at: float | None) -> None:
    assert seconds_since(sent_at, time.time()) is None


def test_how_long_ago() -> None:
    assert seconds_since(EARLIEST, EARLIEST + 5) == 5
    assert seconds_since(100 + EARLIEST, 100 + EARLIEST) == 0
    assert seconds_since(EARLIEST + SKEW, EARLIEST) == 0  # a clock that is ahead
    assert seconds_since(EARLIEST + SKEW + 1, EARLIEST) is None
