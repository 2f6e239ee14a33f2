"""What a forked child must not take over from its parent, made anew in one place.

fork() copies a lock that another thread holds, but not the thread: in the child nobody would ever
release it. So each lock that an object or a module keeps longer than for one call is one of
these. The data behind it must be usable at any moment: its holder may have been in the middle.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from workqueue.deadline import left

BRIEF = 0.1
"""Seconds for which a lock is waited for even when no time is left: hardly any is held longer."""

Owner = TypeVar("Owner")

renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def renew_after_fork(owner: Owner, renew: Callable[[Owner], None]) -> None:
    """Call `renew(owner)` in each forked child, before anything else runs there, for as long as
    `owner` exists. It must neither block nor raise."""
    renewals[owner] = renew


def renew_all() -> None:
    for owner, renew in list(renewals.items()):
        renew(owner)


os.register_at_fork(after_in_child=renew_all)


class Lock:
    """A `threading.Lock` that is open in a forked child, whoever held it in the parent."""

    make: Callable[[], Any] = staticmethod(threading.Lock)

    def __init__(self) -> None:
        self.renew()
        renew_after_fork(self, type(self).renew)

    def renew(self) -> None:
        self.lock = self.make()

    def __enter__(self) -> None:
        """Raises TimeoutError when the deadline passes first, and the lock is held for long."""
        patience = max(left(), BRIEF)
        if not self.lock.acquire(timeout=-1 if patience == math.inf else patience):
            raise TimeoutError("another thread of this process is still busy with it")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lock.release()


class RLock(Lock):
    """The same of a `threading.RLock`, which its holder may take once more."""

    make = staticmethod(threading.RLock)


class Condition(threading.Condition):
    """A `threading.Condition` that is open in a forked child, where nobody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        renew_after_fork(self, type(self).renew)

    def renew(self) -> None:
        super().__init__()
