"""How long everything that is done now may take in all.

A caller's timeout has to bound every wait below it: name look-ups, handshakes, declarations,
confirms. The signatures in between carry no timeout, so the deadline travels in a context variable:

    with within(4.0) as deadline:
        transport.declare(spec)      # each wait in it is `left(its own limit)`
        deadline.left()              # what remains of the four seconds

Deadlines nest; the earlier one counts. A new thread has none.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self


class Deadline:
    """A moment, `seconds` from now or when the surrounding deadline ends, if that is sooner."""

    __slots__ = ("at", "outer", "token")

    def __init__(self, seconds: float) -> None:
        self.outer = current.get()
        self.at = time.monotonic() + max(0.0, seconds)
        if self.outer is not None:
            self.at = min(self.at, self.outer.at)

    def left(self) -> float:
        """Seconds until then, never less than 0."""
        return max(0.0, self.at - time.monotonic())

    def __enter__(self) -> Self:
        self.token: Token[Deadline | None] = current.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        current.reset(self.token)


current: ContextVar[Deadline | None] = ContextVar("workqueue_deadline", default=None)

within = Deadline


def left(most: float = math.inf) -> float:
    """Seconds that a wait may take which would take `most` by itself."""
    deadline = current.get()
    return most if deadline is None else min(most, deadline.left())


def extend(seconds: float) -> None:
    """Move all surrounding deadlines: the next `seconds` are for safety, and must not be cut."""
    deadline = current.get()
    while deadline is not None:
        deadline.at += seconds
        deadline = deadline.outer
