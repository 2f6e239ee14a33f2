"""Every broken driver through the whole suite: which of its tests notice what is wrong.

    python -m tests.mutants [NAME]...

Prints a line for each driver: the test that must notice, and how many others do. Exit 1 if one is
noticed by none, or not by its own; or if a whole driver fails. Takes some minutes, most of them
spent waiting, so many run at once.
"""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import pytest

from tests.unit.transports.broken import BROKEN, HostedTransport, SQLiteOf
from tests.unit.transports.test_broken import PROMISES, Driver, hurried, keep
from workqueue.testing import suite
from workqueue.transports.memory import MemoryTransport

AT_ONCE = 12
"""Drivers. More would be late for want of a processor, and be taken for broken."""


@dataclass(frozen=True)
class Mutant:
    """A driver, by its place among those that its promise fails; of a whole one, by its name."""

    promise: str
    place: int

    @property
    def driver(self) -> type[Driver]:
        if self.promise:
            return BROKEN[self.promise][self.place]
        return (MemoryTransport, SQLiteOf, HostedTransport)[self.place]


def noticed_by(mutant: Mutant) -> list[str]:
    """The tests that the driver fails."""
    logging.disable()
    return [promise for promise in PROMISES if fails(promise, mutant.driver)]


def fails(promise: str, driver: type[Driver]) -> bool:
    for name, value in hurried(promise).items():
        setattr(suite, name, value)
    try:
        keep(promise, driver)
    except pytest.skip.Exception:
        return False  # it cannot be asked
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - whatever it is, the test has failed
        return True
    return False


def main(*names: str) -> int:
    mutants = [Mutant("", place) for place in range(3)]
    mutants += [Mutant(promise, n) for promise, ones in BROKEN.items() for n in range(len(ones))]
    mutants = [one for one in mutants if not names or one.driver.__name__ in names]
    unnoticed = 0
    with ProcessPoolExecutor(AT_ONCE) as pool:
        for mutant, found in zip(mutants, pool.map(noticed_by, mutants), strict=True):
            well = mutant.promise in found if mutant.promise else not found
            unnoticed += not well
            others = [name for name in found if name != mutant.promise]
            wanted = mutant.promise or "whole"
            print(f"{'ok  ' if well else 'FAIL'} {mutant.driver.__name__:32} {wanted:50}", end="")
            print(f" {len(others):2} others: {', '.join(others[:3])}", flush=True)
    print(f"{len(mutants)} drivers, {unnoticed} not as they should be")
    return bool(unnoticed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
