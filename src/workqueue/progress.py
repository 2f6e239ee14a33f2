"""A wait that lasts as long as something gets done meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Gives up after `patience` seconds without any change, however long all of it takes."""

    patience: float
    seen: object = None
    since: float = -math.inf

    def goes_on(self, left: object, now: float) -> bool:
        """Whether to wait on, where `left` is what is left to do at `now` (seconds of one
        clock)."""
        if left != self.seen:
            self.seen, self.since = left, now
        return now - self.since < self.patience
