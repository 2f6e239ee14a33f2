"""When a task that failed is tried again: attempt → delay, or None for never."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workqueue.errors import ConfigError
from workqueue.message import LONGEST_DELAY

if TYPE_CHECKING:
    from tenacity import RetryCallState
    from tenacity.stop import stop_base
    from tenacity.wait import wait_base

JITTER = 0.1
"""Part of a delay by which it is made longer or shorter at random, so that tasks that failed
together do not all come back together."""


MOST_PAUSES = 200
"""Pauses that are added up one by one; later ones count as the last one of all."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Five attempts, the second after about a second, each later one after twice as long.

    `max_attempts` counts the first one. Delays begin with `first` seconds and grow up to
    `longest`. In place of these numbers, `stop` and `wait` take tenacity's own strategies, such
    as `stop_after_attempt(3) | stop_after_delay(3600)`, counted from when the task was sent, and
    `wait_chain(wait_fixed(1), wait_fixed(60))`.

    Raises ConfigError for numbers that make no sense.
    """

    max_attempts: int = 5
    first: float = 1.0
    longest: float = 600.0
    stop: stop_base | None = None
    wait: wait_base | None = None

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigError(f"max attempts {self.max_attempts}: a task needs one")
        if not 0 <= self.first <= self.longest <= LONGEST_DELAY:
            raise ConfigError(
                f"backoff {self.first:g}..{self.longest:g} s: from the first delay to the longest, "
                "at most 30 days"
            )

    def delay(self, attempt: int, age: float = 0.0) -> float | None:
        """Seconds until the next attempt, after the one numbered `attempt` has failed; None if
        that was the last. `age` is how many seconds ago the task was sent."""
        if self.stop is None and attempt >= self.max_attempts:
            return None
        if self.stop is not None and self.stop(state_of(attempt, age)):
            return None
        return self.pause(attempt, age)

    def pause(self, attempt: int, age: float = 0.0) -> float:
        """The same, however many attempts there were."""
        if self.wait is not None:
            return min(max(0.0, float(self.wait(state_of(attempt, age)))), LONGEST_DELAY)
        from tenacity.wait import wait_exponential

        # Far beyond the longest delay, the power of two would only grow without use.
        state = state_of(min(attempt, 64), age)
        wait = wait_exponential(multiplier=self.first, max=self.longest)(state)
        return min(wait * random.uniform(1 - JITTER, 1 + JITTER), self.longest)

    def least_age(self, attempt: int) -> float:
        """Seconds ago that a task was sent at least, of which this attempt has failed: the pauses
        between its attempts. So a `stop` that goes by time holds whatever a sender says about his.
        """
        if self.stop is None:
            return 0.0  # nobody asks
        age = 0.0
        for failed in range(1, min(attempt, MOST_PAUSES)):
            age += self.pause(failed, age)
        return age + max(0, attempt - MOST_PAUSES) * self.pause(attempt, age)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What one task asks of the workers that run it; None leaves it to them.

    `backoff` is the first and the longest delay, `timeout` the longest run, in seconds.
    """

    max_attempts: int | None = None
    backoff: tuple[float, float] | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        self.policy(RetryPolicy())
        check_timeout(self.timeout)

    def policy(self, usual: RetryPolicy) -> RetryPolicy:
        """`usual` with what this task wants otherwise."""
        if self.max_attempts is None and self.backoff is None:
            return usual
        first, longest = self.backoff or (usual.first, usual.longest)
        return RetryPolicy(
            max_attempts=usual.max_attempts if self.max_attempts is None else self.max_attempts,
            first=first,
            longest=longest,
            stop=usual.stop if self.max_attempts is None else None,
            wait=usual.wait if self.backoff is None else None,
        )


def check_timeout(timeout: float | None) -> None:
    """Raise ConfigError unless `timeout` is some time, or None."""
    if timeout is not None and not 0 < timeout < float("inf"):
        raise ConfigError(f"timeout {timeout:g} s: a task needs some time")


def state_of(attempt: int, age: float) -> RetryCallState:
    """A task's past, as tenacity's strategies look at it."""
    from tenacity import RetryCallState, Retrying

    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt
    state.outcome_timestamp = state.start_time + age
    return state
