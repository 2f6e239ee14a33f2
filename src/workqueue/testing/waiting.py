"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def eventually(
    condition: Callable[[], Value], *, within: float = 10.0, every: float = 0.02, what: str = ""
) -> Value:
    """The first true value of `condition()`, asked every `every` seconds.

    Raises AssertionError with the last value after `within` seconds.
    """
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            told = what or getattr(condition, "__doc__", None) or "the condition"
            raise AssertionError(f"{told} was not met within {within:g} s; last value: {value!r}")
        time.sleep(every)
