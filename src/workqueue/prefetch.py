"""How many deliveries a worker holds, running or not, when nobody has said it: pure decisions.

Holding more than can be started at once saves the way to the broker and back, and costs fairness:
what a worker holds and has not begun, no idle worker can begin. So a worker measures its tasks,
and holds no more than a moment's work besides what runs. A task that turns out long when others
are held behind it is found out soon, and then they go back.
"""

from __future__ import annotations

HELD_WORK = 0.05
"""Seconds of work for each slot that may be held and not begun."""

LONGEST_WAIT = 0.08
"""Seconds that a delivery may wait to be begun; then all that wait are handed back. A worker looks
every few milliseconds, and has done it before a tenth of a second is over."""

CHANGES_APART = 1.0
"""Seconds from the last long task until more is held again."""

STEP = 8
"""The most by which the number held grows at once."""

MOST_HELD = 2_000
MOST_BYTES = 16 * 1024 * 1024
"""Held at most, over all slots: they are in memory, and go to others if the worker dies."""

FIRST_PROOF = 5
"""Tasks that have to end, at least, before more is held."""

REMEMBERED = 100
"""Tasks over which the mean is taken, the newest counting most."""


class Pace:
    """What a worker of `slots` has seen of its tasks, and `held`, how many deliveries may be out.

    Times are of a clock that the caller reads.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.held = slots
        self.seconds = 0.0
        self.bytes = 0.0
        self.seen = 0
        self.ended = 0
        self.long_at = -CHANGES_APART

    def measure(self, seconds: float, size: int, now: float) -> None:
        """A task ended that took so long, and its body was so large."""
        self.ended += 1
        if seconds >= HELD_WORK:
            self.long_at = now
        self.seen = min(self.seen + 1, REMEMBERED)
        self.seconds += (seconds - self.seconds) / self.seen
        self.bytes += (size - self.bytes) / self.seen

    @property
    def fitting(self) -> int:
        """How many deliveries are the slots' own and a moment's work for each."""
        if not self.seen:
            return self.slots
        ahead = HELD_WORK / max(self.seconds, HELD_WORK / MOST_HELD)
        ahead = min(self.slots * ahead, MOST_HELD, MOST_BYTES / max(self.bytes, 1.0))
        return self.slots + int(ahead)

    def changed(self, now: float) -> bool:
        """Whether another number is to be held from now on.

        It grows in steps, each after as many tasks as are held have ended, so that a few short
        tasks prove little; and not soon after a long one. It goes down when half would do.
        """
        fitting = self.fitting
        if fitting <= self.held // 2:
            self.shrink(fitting)
            return True
        enough = self.ended >= max(self.held, FIRST_PROOF) and now - self.long_at >= CHANGES_APART
        if not enough or fitting < self.held * 3 // 2 or fitting == self.held:
            return False
        self.held = min(fitting, self.held * STEP)
        self.ended = 0
        return True

    def shrink(self, held: int = 0) -> None:
        """Hold `held`, or no more than runs."""
        self.held = max(held, self.slots)
        self.ended = 0
