"""What is done to whom, and when: drawn from a seed, so that a run can be repeated.

The faults are a deck of cards. It is shuffled and dealt to the last card before any comes again.
The seed fixes their order, victims and lengths; not at what point of its work a process is hit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

PAUSE = (0.1, 0.8)
"""Seconds between two strokes, at least and at most."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`strike` does it to a victim of that number, keeps it up for that long, and undoes it; it
    says what it did. `lasts` is how long that is in seconds, at least and at most."""

    name: str
    strike: Callable[[int, float], str]
    lasts: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Stroke:
    """A fault with its victim and its length, and the rest before it."""

    fault: Fault
    victim: int
    seconds: float
    pause: float

    def land(self) -> str:
        return self.fault.strike(self.victim, self.seconds)


def plan(faults: Sequence[Fault], seed: int, first: Fault | None = None) -> Iterator[Stroke]:
    """Without end. `first` is one of them that not even a short attack is to miss."""
    rng = random.Random(seed)
    while faults:
        deck = rng.sample(faults, len(faults))
        if first is not None:
            deck.sort(key=lambda fault: fault is not first)
            first = None
        for fault in deck:
            yield Stroke(
                fault,
                victim=rng.randrange(1_000_000),
                seconds=round(rng.uniform(*fault.lasts), 2),
                pause=round(rng.uniform(*PAUSE), 2),
            )
